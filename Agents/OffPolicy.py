"""What agents share that learn from stored experience: from transitions, from labelled data, and from images that are to be generated.

Labelled data: an episode is one step, the observation an image, the action a score for each class, tanh of the logits (or the class itself, where
actions are discrete), and the reward −error. Two updates can learn from it. The supervised one lowers the cross-entropy of the logits. The one of
reinforcement learning is the agent's own: the critic learns what actions are worth, half of them random so that it knows more than the policy's own, and
the actor climbs it. Deviation from UnifiedML: its cross-entropy saw the scores behind the tanh, which cannot fall below 0.797 with ten classes.

Generation: the action is an image, drawn from noise; the critic tells stored images (reward 1) from generated ones (reward 0) by its squared error,
which is a least-squares GAN (Mao et al. 2017, 1611.04076) with the agent's critic as discriminator and its actor as generator.
"""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from Agents.Agent import Agent
from Blocks.Actors import EPSILON
from Blocks.Block import Block
from Blocks.Encoders import Encoder
from Blocks.Losses import label_reward
from Datasets.Replay import Batch, Replay
from Datasets.Specs import ActionSpec
from Utils import optimise, require


class OffPolicy(Agent):
    """Base of agents that learn from drawn batches. A subclass defines `update`, `settle`, `act`, `scores` and `classifier`.

    Args:
        action_spec: of the environment.
        RL: whether labelled data are learned from by reinforcement learning.
        supervise: whether they are by cross-entropy.
        generate: actions are images.

    Attributes:
        aug, encoder: what learning and acting see through. batch_size, nstep, grad_clip: of an update."""

    aug: Any
    encoder: Encoder
    batch_size: int
    nstep: int
    grad_clip: float | None

    def __init__(self, *, action_spec: ActionSpec, RL: bool = True, supervise: bool = True, generate: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        require(RL or supervise, 'RL=false supervise', 'false', 'one of the two to be true: nothing would be learned')
        require(not (generate and action_spec.discrete), 'generate', 'true', 'continuous actions, as an image is one: leave discrete=true out')
        self.action_spec, self.discrete, self.RL, self.supervise, self.generate = action_spec, action_spec.discrete, RL, supervise, generate
        self.label_loss = self.maybe_compiled(self.supervised_loss)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One update from transitions, `settle` included. batch.next_obs None: no step follows, the reward is all. → metrics."""
        raise NotImplementedError

    def settle(self) -> None:
        """What follows every update: it is counted, and target networks and moving averages follow."""
        raise NotImplementedError

    def scores(self, obs: Tensor, averages: bool = False) -> Tensor:
        """Logits of the classes (B, K) float32, with gradient. averages: of what acts, where that is a moving average."""
        raise NotImplementedError

    @property
    def classifier(self) -> tuple[Block, ...]:
        """The blocks that `scores` passes through."""
        raise NotImplementedError

    # --- learning

    def learn(self, replay: Replay) -> dict[str, Tensor]:
        batch = replay.sample(self.batch_size, self.nstep)
        if self.generate:
            return self.update(self.judged(batch))
        return self.update(batch) if batch.label is None else self.learn_labels(batch)

    def learn_labels(self, batch: Batch) -> dict[str, Tensor]:
        """The supervised update, that of reinforcement learning, or one after the other."""
        assert batch.label is not None
        metrics: dict[str, Tensor] = {}
        obs = self.aug(batch.obs, self.learning)
        if self.supervise:
            logits, metrics = self.update_supervised(obs, batch.label)
        else:
            with torch.no_grad(), self.autocast():
                logits = self.scores(obs)
        if self.RL:
            metrics |= self.update(self.rewarded(batch, logits))
        else:
            self.settle()
        return metrics | {'accuracy': (logits.argmax(-1) == batch.label).float().mean()}

    def update_supervised(self, obs: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One step on the cross-entropy of the logits. → logits without gradient, metrics."""
        loss, logits = self.label_loss(obs, label)
        optimise(loss, *self.classifier, name='supervised_loss', grad_clip=self.grad_clip, schedule=not self.RL)  # with RL, each block's second step counts
        return logits, {'supervised_loss': loss.detach()}

    def supervised_loss(self, obs: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """→ cross-entropy, mean over the batch; logits (B, K) without gradient."""
        with self.autocast():
            logits = self.scores(obs)
        return F.cross_entropy(logits, label), logits.detach()

    def rewarded(self, batch: Batch, logits: Tensor) -> Batch:
        """Labelled observations as transitions of one step: the first half with random actions, the others with the policy's."""
        assert batch.label is not None
        half = len(logits) // 2
        random: dict[str, Any] = {'generator': self.learning, 'device': logits.device}
        if self.discrete:
            action = logits.argmax(-1)
            action[:half] = torch.randint(logits.shape[-1], (half,), **random)
        else:
            action = torch.tanh(logits).clamp(-1 + EPSILON, 1 - EPSILON)
            action[:half] = torch.rand((half, logits.shape[-1]), **random) * 2 - 1
        reward = label_reward(action, batch.label)
        return replace(batch, action=action, reward=reward, discount=torch.zeros_like(reward), next_obs=None, label=None)

    def judged(self, batch: Batch) -> Batch:
        """Stored images as actions in [−1, 1] with reward 1; the first half makes room for generated ones with reward 0."""
        image = batch.obs.flatten(1).float() / 127.5 - 1
        half = len(image) // 2
        with torch.no_grad(), self.autocast():
            image[:half] = self.generated(batch.obs[:half])
        reward = torch.ones(len(image), device=image.device)
        reward[:half] = 0
        return replace(batch, action=image, reward=reward, discount=torch.zeros_like(reward), next_obs=None, label=None)

    def generated(self, obs: Tensor) -> Tensor:
        """As many images as observations, of which nothing else is seen: (B, A) in (−1, 1), without noise on them."""
        raise NotImplementedError

    # --- evaluating

    @torch.no_grad()
    def predict(self, obs: Tensor, classes: int) -> Tensor:
        """Their logits."""
        with self.autocast():
            return self.scores(self.aug.evaluate(obs), averages=True).float()
