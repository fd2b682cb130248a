"""Soft actor-critic (Haarnoja et al. 2018, 1801.01290 and 1812.05905): state and pixels, continuous and discrete actions.

Twin critics on one encoder, a squashed Gaussian policy, a learned temperature. From pixels it is the agent of SAC-AE and CURL (1910.01741, 2004.04136)
without their extra losses: actor and critic see through the same convolutions, which the critic trains; each has a projection of its own.
Discrete actions: the expectation over a categorical policy takes the place of the sample (Christodoulou 2019, 1910.07207).
Deviations from CURL's code: the actor's features are those the critic has just used (one pass instead of two, as in DrQ-v2); whatever part of the
encoder the actor reads is trained by the critic (there its hidden layers for vectors stay as they were drawn).
Presets: Hparams/Agent/Agents.SAC.yaml.
"""
from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from Agents.OffPolicy import OffPolicy
from Agents.Random import uniform_action
from Blocks.Actors import StochasticActor
from Blocks.Block import Block, init_delta_orthogonal, redraw
from Blocks.Critics import Critic
from Blocks.Encoders import Encoder, NoiseEncoder, encoder_kind
from Blocks.Losses import gather_actions, td_loss, td_target
from Datasets.Replay import Batch
from Datasets.Specs import ActionSpec, ObsSpec
from Environment import Step
from Utils import build, follow, optimise, require


class Temperature(Block):
    """α > 0, the weight of the entropy, learned as its logarithm."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(math.log(initial)))

    def forward(self) -> Tensor:
        return self.log_alpha.exp()


class SAC(OffPolicy):
    """
    Args:
        obs_spec, action_spec: of the environment. RL, supervise, generate: see OffPolicy.
        recipes: replacements of parts.
        encoder: 'pixel', 'mlp', 'ofe', 'identity', or 'auto': pixel for images, identity for vectors.
        encoder_hidden_dim, encoder_layers: of the encoders mlp and ofe.
        trunk_dim: width of the projections behind the eyes.
        num_critics: heads of the ensemble; targets and the actor take the lowest.
        critic_tau, encoder_tau: share of the online weights that the targets take every target_per_updates updates.
        actor_per_updates: updates for each step of actor and temperature.
        init_temperature: α at the start. learn_temperature: false keeps it.
        target_entropy: null is −A for continuous actions, 0.98 log(number of actions) for discrete ones.
        temperature_lr, temperature_beta: Adam's, of log α; lr null is that of the rest.
        log_std_min, log_std_max: of the Gaussian before the squash.
        detach_encoder: the critic trains the projection alone. actor_trains_encoder: the actor's loss reaches the eyes too.
        normalise_obs: vectors by running moments.
        ema: act with moving averages of encoder and actor.
        explore_steps: agent steps of uniform actions."""

    def __init__(self, *, obs_spec: ObsSpec, action_spec: ActionSpec, recipes: dict[str, Any], encoder: str = 'auto', encoder_hidden_dim: int = 256,
                 encoder_layers: int = 1, batch_size: int = 256, nstep: int = 1, lr: float = 3e-4, weight_decay: float = 0.0, adam_beta: float = 0.9,
                 adam_eps: float = 1e-8, lr_decay_steps: int = 0, grad_clip: float | None = None, ema: bool = False, ema_decay: float = 0.99,
                 explore_steps: int = 1000, hidden_dim: int = 256, depth: int = 2,
                 trunk_dim: int = 50, layer_norm: bool = False, num_critics: int = 2, critic_tau: float = 0.005, encoder_tau: float = 0.05,
                 target_per_updates: int = 1, actor_per_updates: int = 1, init_temperature: float = 0.1, learn_temperature: bool = True,
                 target_entropy: float | None = None, temperature_lr: float | None = None, temperature_beta: float = 0.9, log_std_min: float = -10.0,
                 log_std_max: float = 2.0, detach_encoder: bool = False, actor_trains_encoder: bool = False, normalise_obs: bool = False,
                 **settings: Any) -> None:
        super().__init__(action_spec=action_spec, **settings)
        for key, count in (('num_critics', num_critics), ('target_per_updates', target_per_updates), ('actor_per_updates', actor_per_updates)):
            require(count >= 1, f'agent.{key}', count, '1 or more')
        require(depth >= 0, 'agent.depth', depth, '0 or more')
        for key, share in (('critic_tau', critic_tau), ('encoder_tau', encoder_tau)):
            require(0 < share <= 1, f'agent.{key}', share, 'more than 0, at most 1')
        require(0 < init_temperature < math.inf, 'agent.init_temperature', init_temperature, 'more than 0')
        require(temperature_lr is None or 0 <= temperature_lr < math.inf, 'agent.temperature_lr', temperature_lr, '0 or more')
        require(target_entropy is None or math.isfinite(target_entropy), 'agent.target_entropy', target_entropy, 'a number, or null')
        require(0 <= temperature_beta < 1, 'agent.temperature_beta', temperature_beta, 'a number from 0 to below 1')
        require(log_std_min < log_std_max, 'agent.log_std_min', log_std_min, f'less than agent.log_std_max={log_std_max}')
        self.batch_size, self.nstep, self.explore_steps, self.grad_clip = batch_size, nstep, explore_steps, grad_clip
        self.critic_tau, self.encoder_tau, self.target_per_updates = critic_tau, encoder_tau, target_per_updates
        self.actor_per_updates, self.learn_temperature = actor_per_updates, learn_temperature
        self.detach_encoder, self.actor_trains_encoder = detach_encoder, actor_trains_encoder
        most = 0.98 * math.log(action_spec.num_actions) if action_spec.num_actions else -float(action_spec.size)
        self.target_entropy = most if target_entropy is None else target_entropy

        kind: dict[str, Any] = {} if self.generate else encoder_kind(encoder, obs_spec, images='pixel', vectors='identity', hidden_dim=encoder_hidden_dim,
                                                                     layers=encoder_layers)
        self.aug = build(recipes.get('aug'), 'Blocks.Augmentations.Null', 'recipes.aug', input_shape=obs_spec.stacked_shape)
        self.encoder: Encoder = NoiseEncoder(obs_spec, trunk_dim) if self.generate else Encoder(
            obs_spec, recipes['encoder'], **kind, input_shape=self.aug.output_shape, projection_dim=trunk_dim, normalise=normalise_obs)
        drawn: dict[str, Any] = {'image_shape': obs_spec.stacked_shape, 'tanh': False} if self.generate else {}  # the policy squashes what its head draws
        sizes: dict[str, Any] = {'hidden_dim': hidden_dim, 'depth': depth, 'layer_norm': layer_norm}
        self.critic = Critic(self.encoder.repr_shape, action_spec, recipes['critic'], num_critics=num_critics, trunk_dim=trunk_dim,
                             image_shape=drawn.get('image_shape'), **sizes)
        self.actor = StochasticActor(self.encoder.feature_shape, action_spec, recipes['actor'], trunk=kind.get('projection', 'Null'), trunk_dim=trunk_dim,
                                     log_std=(log_std_min, log_std_max), **drawn, **sizes)
        self.temperature = Temperature(init_temperature)
        if not self.generate:
            for block in (self.encoder, self.critic, self.actor):
                redraw(block, init_delta_orthogonal)
        self.to(self.device)
        optim: dict[str, Any] = {'lr': lr, 'weight_decay': weight_decay, 'betas': (adam_beta, 0.999), 'eps': adam_eps, 'lr_decay_steps': lr_decay_steps}
        for name in ('encoder', 'critic', 'actor'):
            getattr(self, name).equip(recipes[name], f'recipes.{name}', **optim)
        self.temperature.equip({}, 'agent', **optim | {'lr': lr if temperature_lr is None else temperature_lr, 'weight_decay': 0.0,
                                                       'betas': (temperature_beta, 0.999)})
        self.target_encoder, self.target_critic = self.encoder.frozen_copy(), self.critic.frozen_copy()
        # what acts: the learners, or their moving averages
        self.ema_encoder, self.ema_actor, self.ema_decay = self.encoder.frozen_copy() if ema else None, self.actor.frozen_copy() if ema else None, ema_decay
        self.critic_loss = self.maybe_compiled(self.soft_critic_loss)
        self.actor_loss = self.maybe_compiled(self.soft_actor_loss)

    # --- acting

    @torch.no_grad()
    def act(self, step: Step, state: Any = None, greedy: bool = False) -> tuple[Tensor, dict[str, Tensor], Any]:
        if not greedy:
            self.encoder.observe(step.obs)
            if self.step < self.explore_steps:
                return uniform_action(self.action_spec, step.obs.shape[0], self.acting), {}, state
        encoder, actor = self.actors
        policy = actor(encoder.features(self.aug.evaluate(step.obs)))
        if greedy:
            return policy.best, {}, state
        return policy.sample(self.acting) if self.discrete else policy.sample(self.noise(step.obs.shape[0], self.acting))[0], {}, state

    @property
    def actors(self) -> tuple[Encoder, Block]:
        """What acts: encoder and actor, or their moving averages."""
        return self.ema_encoder or self.encoder, self.ema_actor or self.actor

    def noise(self, batch_size: int, random: torch.Generator) -> Tensor:
        """Standard normal (B, A)."""
        return torch.randn((batch_size, *self.action_spec.shape), generator=random, device=random.device).to(self.device)

    # --- learning

    def scores(self, obs: Tensor, averages: bool = False) -> Tensor:
        encoder, actor = self.actors if averages else (self.encoder, self.actor)
        return actor(encoder.features(obs)).logits

    @property
    def classifier(self) -> tuple[Block, ...]:
        return self.encoder, self.actor

    def generated(self, obs: Tensor) -> Tensor:
        return self.actor(self.encoder.features(obs)).best

    def update(self, batch: Batch) -> dict[str, Tensor]:
        obs = self.aug(batch.obs, self.learning)
        next_obs = None if batch.next_obs is None else self.aug(batch.next_obs, self.learning)
        alpha = self.temperature().detach()
        loss, metrics, features = self.critic_loss(obs, batch.action, batch.reward, batch.discount, next_obs, batch.weight, alpha,
                                                   self.noise(len(obs), self.learning))
        optimise(loss, self.encoder, self.critic, name='critic_loss', grad_clip=self.grad_clip)
        if (self.update_count + 1) % self.actor_per_updates == 0:
            metrics |= self.update_actor(features, obs, alpha)
        self.settle()
        return metrics

    def settle(self) -> None:
        self.update_count += 1
        if self.update_count % self.target_per_updates == 0:
            follow(self.target_critic, self.critic, self.critic_tau)
            follow(self.target_encoder, self.encoder, self.encoder_tau)
        if self.ema_encoder is not None and self.ema_actor is not None:
            follow(self.ema_encoder, self.encoder, 1 - self.ema_decay)
            follow(self.ema_actor, self.actor, 1 - self.ema_decay)

    def soft_critic_loss(self, obs: Tensor, action: Tensor, reward: Tensor, discount: Tensor, next_obs: Tensor | None, weight: Tensor | None, alpha: Tensor,
                         noise: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """y = R + γⁿ (min Q̄(s′, a′) − α log π(a′|s′)), a′ ~ π(s′) (1812.05905, eq. 3); mean square of Q(s, a) − y, summed over heads."""
        with self.autocast():
            with torch.no_grad():
                target_q = reward
                if next_obs is not None:
                    prepared = self.encoder.prepare(next_obs)  # once for both networks
                    policy = self.actor(self.encoder.eyes(prepared))
                    representation = self.target_encoder.represent(prepared)
                    target_q = td_target(reward, discount, self.soft_value(representation, policy, self.target_critic, alpha, noise)[0])
            features = self.encoder.features(obs)
            representation = self.encoder.project(features.detach() if self.detach_encoder else features)
            q = gather_actions(self.critic(representation), action) if self.discrete else self.critic(representation, action)
        loss = td_loss(q, target_q, False, weight)
        return loss, {'critic_loss': loss.detach(), 'q_mean': q.detach().mean(), 'target_q': target_q.mean()}, features

    def soft_value(self, representation: Tensor, policy: Any, critic: Block, alpha: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """→ V(s) = E[min Q(s, a) − α log π(a|s)] and E[log π], (B,) each: over the sample that `noise` makes, or over all discrete actions."""
        if self.discrete:
            q = critic(representation).min(0).values
            log_prob = (policy.probs * policy.log_probs).sum(-1)
            return (policy.probs * q).sum(-1) - alpha * log_prob, log_prob
        action, log_prob = policy.sample(noise)
        return critic(representation, action).min(0).values - alpha * log_prob, log_prob

    def update_actor(self, features: Tensor, obs: Tensor, alpha: Tensor) -> dict[str, Tensor]:
        """Climbs the soft value; then the temperature falls where the entropy is above its target, and rises where it is below."""
        learners: list[Block] = [self.actor]
        if self.actor_trains_encoder:
            features = self.encoder.features(obs)  # with gradients of its own: the critic's step has used up the others
            learners.append(self.encoder)
        else:
            features = features.detach()
        self.critic.requires_grad_(False)
        loss, log_prob = self.actor_loss(features, alpha, self.noise(len(obs), self.learning))
        optimise(loss, *learners, name='actor_loss', grad_clip=self.grad_clip)
        self.critic.requires_grad_(True)
        metrics = {'actor_loss': loss.detach(), 'entropy': -log_prob, 'temperature': alpha}
        if self.learn_temperature:
            optimise(-self.temperature() * (log_prob + self.target_entropy), self.temperature, name='temperature_loss')
        return metrics

    def soft_actor_loss(self, features: Tensor, alpha: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """→ E[α log π(a|s) − min Q(s, a)] (1812.05905, eq. 7), and the mean of log π without gradient."""
        with self.autocast():
            policy = self.actor(features)
            with torch.no_grad():
                representation = self.encoder.project(features)
            value, log_prob = self.soft_value(representation, policy, self.critic, alpha, noise)
        return -value.mean(), log_prob.detach().mean()
