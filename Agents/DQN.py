"""Deep Q-learning (Mnih et al. 2015, "Human-level control through deep reinforcement learning"), discrete and continuous.

Discrete: Q of every action; options are double (1509.06461), dueling (1511.06581), n-step, an ensemble of heads, ε-greedy or softmax exploration.
Continuous: Creator ranks samples of a Gaussian actor by their Q; the actor climbs the critic (UnifiedML's DQNAgent; with one candidate this is
DDPG with clipped double Q). Deviations from the Nature paper: AdamW instead of RMSProp, n-step returns, a target network that may also follow smoothly.
Presets: Hparams/Agent/Agents.DQN.yaml; numbers for one task in Hparams/paper/Agents.DQN.
"""
from __future__ import annotations

import contextlib
from typing import Any, Literal

import torch
from torch import Tensor

from Agents.OffPolicy import OffPolicy
from Agents.Random import uniform_action
from Blocks.Actors import Actor
from Blocks.Block import Block
from Blocks.Creator import Creator
from Blocks.Critics import Critic
from Blocks.Encoders import Encoder, NoiseEncoder, encoder_kind
from Blocks.Losses import gather_actions, next_value_discrete, td_loss, td_target
from Datasets.Replay import Batch
from Datasets.Specs import ActionSpec, ObsSpec
from Environment import Step
from Utils import build, follow, optimise, require, schedule


class DQN(OffPolicy):
    """
    Args:
        obs_spec, action_spec: of the environment. RL, supervise, generate: see OffPolicy.
        recipes: replacements of parts.
        encoder: 'nature', 'pixel', 'mlp', 'ofe', 'identity', or 'auto': nature for images, identity for vectors.
        encoder_hidden_dim, encoder_layers: of the encoders mlp and ofe. normalise_obs: vectors by running moments.
        num_critics: heads of the ensemble; targets take the lowest, acting the mean.
        exploration: 'epsilon' or 'softmax' (over Q / temperature).
        epsilon, temperature, stddev_schedule: schedules over agent steps. eval_epsilon: random actions in evaluation.
        target_tau, target_per_updates: every so many updates the target network moves by tau (1 = a hard copy).
        num_actions: continuous candidates per observation. stddev_clip: limit of the noise inside losses.
        explore_steps: agent steps of uniform actions."""

    def __init__(self, *, obs_spec: ObsSpec, action_spec: ActionSpec, recipes: dict[str, Any], encoder: str = 'auto', encoder_hidden_dim: int = 256,
                 encoder_layers: int = 1, normalise_obs: bool = False, batch_size: int = 32, nstep: int = 1, lr: float = 1e-4,
                 weight_decay: float = 0.0, adam_beta: float = 0.9, adam_eps: float = 1e-8, lr_decay_steps: int = 0, grad_clip: float | None = None,
                 ema: bool = False, ema_decay: float = 0.99, explore_steps: int = 2000, hidden_dim: int = 512, depth: int = 1, trunk_dim: int = 50,
                 layer_norm: bool = False, double: bool = True, dueling: bool = False, num_critics: int = 1, huber: bool = True,
                 exploration: Literal['epsilon', 'softmax'] = 'epsilon', epsilon: str | float = 'linear(1.0,0.05,50000)', eval_epsilon: float = 0.0,
                 temperature: str | float = 'linear(1.0,0.1,20000)', target_tau: float = 0.01, target_per_updates: int = 1, num_actions: int = 1,
                 stddev_schedule: str | float = 'linear(1.0,0.1,20000)', stddev_clip: float = 0.3, **settings: Any) -> None:
        super().__init__(action_spec=action_spec, **settings)
        require(exploration in ('epsilon', 'softmax'), 'agent.exploration', exploration, 'epsilon or softmax')
        for key, count in (('num_critics', num_critics), ('num_actions', num_actions), ('target_per_updates', target_per_updates)):
            require(count >= 1, f'agent.{key}', count, '1 or more')
        require(depth >= 0, 'agent.depth', depth, '0 or more')
        require(action_spec.discrete or not dueling, 'agent.dueling', dueling, 'false where actions are continuous')
        require(0 < target_tau <= 1, 'agent.target_tau', target_tau, 'more than 0, at most 1')
        require(0 <= eval_epsilon <= 1, 'agent.eval_epsilon', eval_epsilon, 'a number from 0 to 1')
        require(stddev_clip >= 0, 'agent.stddev_clip', stddev_clip, '0 or more')
        self.batch_size, self.nstep, self.explore_steps, self.grad_clip = batch_size, nstep, explore_steps, grad_clip
        self.double_q, self.huber, self.exploration, self.eval_epsilon = double, huber, exploration, eval_epsilon
        self.target_tau, self.target_per_updates, self.ema_decay = target_tau, target_per_updates, ema_decay
        self.num_actions, self.stddev_clip = num_actions, stddev_clip
        self.epsilon, self.temperature = schedule(epsilon, 'agent.epsilon'), schedule(temperature, 'agent.temperature')
        self.stddev = schedule(stddev_schedule, 'agent.stddev_schedule')
        for step in (0, 10 ** 12):
            require(0 <= self.epsilon(step) <= 1, 'agent.epsilon', epsilon, 'probabilities')
            require(self.temperature(step) > 0, 'agent.temperature', temperature, 'more than 0 throughout')
            require(self.stddev(step) >= 0, 'agent.stddev_schedule', stddev_schedule, '0 or more throughout')

        images = obs_spec.is_image
        self.aug = build(recipes.get('aug'), 'Blocks.Augmentations.Null', 'recipes.aug', input_shape=obs_spec.stacked_shape)
        sizes: dict[str, Any] = {'hidden_dim': hidden_dim, 'depth': depth, 'layer_norm': layer_norm}
        if self.generate:
            self.encoder: Encoder = NoiseEncoder(obs_spec, trunk_dim)
        else:
            kind = encoder_kind(encoder, obs_spec, images='nature', vectors='identity', hidden_dim=encoder_hidden_dim, layers=encoder_layers)
            self.encoder = Encoder(obs_spec, recipes['encoder'], **kind, input_shape=self.aug.output_shape, layer_norm=layer_norm, projection_dim=trunk_dim,
                                   normalise=normalise_obs)
        drawn: dict[str, Any] = {'image_shape': obs_spec.stacked_shape, 'tanh': False} if self.generate else {}  # the actor squashes what its head draws
        trunk = 'LayerNormTanh' if images and not (self.discrete or self.generate) else 'Null'
        self.critic = Critic(self.encoder.repr_shape, action_spec, recipes['critic'], trunk=trunk, q_head='Dueling' if dueling and self.discrete else 'MLP',
                             num_critics=num_critics, trunk_dim=trunk_dim, image_shape=drawn.get('image_shape'), **sizes)
        self.to(self.device)
        optim: dict[str, Any] = {'lr': lr, 'weight_decay': weight_decay, 'betas': (adam_beta, 0.999), 'eps': adam_eps, 'lr_decay_steps': lr_decay_steps}
        self.learners = [self.encoder.equip(recipes['encoder'], 'recipes.encoder', **optim), self.critic.equip(recipes['critic'], 'recipes.critic', **optim)]
        self.target_encoder, self.target_critic = self.encoder.frozen_copy(), self.critic.frozen_copy()
        if not self.discrete:
            self.actor = Actor(self.encoder.repr_shape, action_spec, recipes['actor'], trunk=trunk, trunk_dim=trunk_dim, **drawn,
                               **sizes).to(self.device)
            self.actor.equip(recipes['actor'], 'recipes.actor', **optim)
        # what acts: the learners, or their moving averages
        self.ema_encoder = self.encoder.frozen_copy() if ema else None
        self.ema_head = (self.critic if self.discrete else self.actor).frozen_copy() if ema else None
        self.critic_loss = self.maybe_compiled(self.discrete_critic_loss if self.discrete else self.continuous_critic_loss)

    # --- acting

    @torch.no_grad()
    def act(self, step: Step, state: Any = None, greedy: bool = False) -> tuple[Tensor, dict[str, Tensor], Any]:
        if not greedy:
            self.encoder.observe(step.obs)
        if not greedy and self.step < self.explore_steps:
            return uniform_action(self.action_spec, step.obs.shape[0], self.acting), {}, state
        encoder, head = self.actors
        # for one lane, casting the weights takes longer than the cast product saves
        with self.autocast() if len(step.obs) > 1 else contextlib.nullcontext():
            representation = encoder(self.aug.evaluate(step.obs))
            act = self.act_discrete if self.discrete else self.act_continuous
            return act(representation, head, greedy), {}, state

    @property
    def actors(self) -> tuple[Encoder, Block]:
        """What acts: encoder and head, or their moving averages."""
        return self.ema_encoder or self.encoder, self.ema_head or (self.critic if self.discrete else self.actor)

    def act_discrete(self, representation: Tensor, critic: Block, greedy: bool) -> Tensor:
        policy = Creator(critic(representation), self.temperature(self.step))
        if greedy:
            return policy.epsilon_greedy(self.eval_epsilon, self.evaluating) if self.eval_epsilon else policy.best
        return policy.sample(self.acting) if self.exploration == 'softmax' else policy.epsilon_greedy(self.epsilon(self.step), self.acting)

    def act_continuous(self, representation: Tensor, actor: Block, greedy: bool) -> Tensor:
        policy = actor(representation, self.stddev(self.step))
        if greedy:
            return policy.mean
        candidates = policy.sample(self.noise((self.num_actions, *policy.mean.shape), self.acting))
        if self.num_actions == 1:
            return candidates[0]
        q = torch.stack([self.critic(representation, candidate) for candidate in candidates], -1)
        pick = Creator(q, self.temperature(self.step)).sample(self.acting)
        return candidates[pick, torch.arange(len(pick), device=pick.device)]

    def noise(self, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=random, device=random.device).to(self.device)

    # --- learning

    def scores(self, obs: Tensor, averages: bool = False) -> Tensor:
        """Logits of the classes: the mean of the ensemble, or what the actor's tanh squashes."""
        encoder, head = self.actors if averages else (self.encoder, self.critic if self.discrete else self.actor)
        representation = encoder(obs)
        return head(representation).mean(0) if self.discrete else head(representation, 0.0).logits

    @property
    def classifier(self) -> tuple[Block, ...]:
        return self.encoder, self.critic if self.discrete else self.actor

    def generated(self, obs: Tensor) -> Tensor:
        return self.actor(self.encoder(obs), 0.0).mean

    def update(self, batch: Batch) -> dict[str, Tensor]:
        obs = self.aug(batch.obs, self.learning)
        next_obs = None if batch.next_obs is None else self.aug(batch.next_obs, self.learning)
        if self.discrete:
            loss, metrics, _ = self.critic_loss(obs, batch.action, batch.reward, batch.discount, next_obs, batch.weight)
            optimise(loss, *self.learners, name='critic_loss', grad_clip=self.grad_clip)
        else:
            stddev = torch.tensor(self.stddev(self.step), device=self.device)
            noise = self.noise(tuple(batch.action.shape), self.learning)
            loss, metrics, representation = self.critic_loss(obs, batch.action, batch.reward, batch.discount, next_obs, batch.weight, stddev, noise)
            optimise(loss, *self.learners, name='critic_loss', grad_clip=self.grad_clip)
            metrics |= self.update_actor(representation.detach(), stddev)
        self.settle()
        return metrics

    def discrete_critic_loss(self, obs: Tensor, action: Tensor, reward: Tensor, discount: Tensor, next_obs: Tensor | None,
                             weight: Tensor | None) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """y = R + γⁿ Q̄(s′, argmax Q(s′)) for double, argmax Q̄ otherwise; Huber loss of Q(s, a) − y."""
        with self.autocast():  # one region, so that each weight is cast once
            with torch.no_grad():
                target_q = reward
                if next_obs is not None:
                    prepared = self.encoder.prepare(next_obs)  # once for both networks
                    target_next = self.target_critic(self.target_encoder.represent(prepared))
                    online_next = self.critic(self.encoder.represent(prepared)) if self.double_q else None
                    target_q = td_target(reward, discount, next_value_discrete(target_next, online_next))
            representation = self.encoder(obs)
            q = gather_actions(self.critic(representation), action)
        loss = td_loss(q, target_q, self.huber, weight)
        return loss, {'critic_loss': loss.detach(), 'q_mean': q.detach().mean(), 'target_q': target_q.mean()}, representation

    def continuous_critic_loss(self, obs: Tensor, action: Tensor, reward: Tensor, discount: Tensor, next_obs: Tensor | None, weight: Tensor | None,
                               stddev: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """y = R + γⁿ min Q̄(s′, a′), a′ the actor's mean plus clipped noise (DrQ-v2, eq. 3); mean square of Q(s, a) − y, summed over heads."""
        with self.autocast():
            with torch.no_grad():
                target_q = reward
                if next_obs is not None:
                    prepared = self.encoder.prepare(next_obs)  # once for both networks
                    next_action = self.actor(self.encoder.represent(prepared), stddev).sample(noise, self.stddev_clip)
                    next_value = self.target_critic(self.target_encoder.represent(prepared), next_action).min(0).values
                    target_q = td_target(reward, discount, next_value)
            representation = self.encoder(obs)
            q = self.critic(representation, action)
        loss = td_loss(q, target_q, False, weight)
        return loss, {'critic_loss': loss.detach(), 'q_mean': q.detach().mean(), 'target_q': target_q.mean()}, representation

    def update_actor(self, representation: Tensor, stddev: Tensor) -> dict[str, Tensor]:
        """Climbs the lowest of the ensemble; neither encoder nor critic moves."""
        self.critic.requires_grad_(False)
        with self.autocast():
            policy = self.actor(representation, stddev)
            q = self.critic(representation, policy.sample(self.noise(tuple(policy.mean.shape), self.learning), self.stddev_clip)).min(0).values
        loss = -q.mean()
        optimise(loss, self.actor, name='actor_loss', grad_clip=self.grad_clip)
        self.critic.requires_grad_(True)
        return {'actor_loss': loss.detach()}

    def settle(self) -> None:
        self.update_count += 1
        if self.update_count % self.target_per_updates == 0:
            follow(self.target_critic, self.critic, self.target_tau)
            follow(self.target_encoder, self.encoder, self.target_tau)
        if self.ema_encoder is not None and self.ema_head is not None:
            follow(self.ema_encoder, self.encoder, 1 - self.ema_decay)
            follow(self.ema_head, self.critic if self.discrete else self.actor, 1 - self.ema_decay)
