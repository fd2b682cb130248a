"""Proximal policy optimisation (Schulman et al. 2017, 1707.06347), discrete and continuous, with the details of "The 37 Implementation Details of PPO".

Rollouts of `rollout_steps` steps in every lane come from `replay.latest`; each is passed over `epochs` times in `minibatches` shuffled parts.
An episode that is cut off by a time limit is worth what the critic says of its true final observation.
A bonus for exploration has a value head and a discount of its own, and goes on through the ends of episodes (Burda et al. 2018, 1810.12894, §2.3).
Presets: Hparams/Agent/Agents.PPO.yaml.
"""
from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

import Parallel
from Agents.Agent import Agent
from Blocks.Actors import OpenActor
from Blocks.Architectures.MLP import ACTIVATIONS
from Blocks.Block import Block, init_orthogonal_relu, redraw, scale_last
from Blocks.Critics import ValueCritic
from Blocks.Encoders import Encoder, encoder_kind
from Blocks.Exploration.Bonus import Seen
from Blocks.Losses import advantages, clipped_surrogate, clipped_value_loss, standardised
from Blocks.Normalisers import ReturnNormaliser
from Datasets.Batch import Rollout
from Datasets.Layout import Extra
from Datasets.Replay import Replay
from Datasets.Specs import ActionSpec, ObsSpec
from Environment import Step
from Utils import NonFinite, build, optimise, require, schedule


class PPO(Agent):
    """
    Args:
        obs_spec, action_spec: of the environment.
        recipes: replacements of parts.
        encoder: 'nature', 'pixel', 'cnn', 'mlp', 'ofe', 'identity', or 'auto': nature for images, identity for vectors.
        encoder_hidden_dim, encoder_layers: of the encoders mlp and ofe. normalise_obs: vectors by running moments.
        shared: actor and critic read one encoder; else the critic has one of its own.
        hidden_dim, depth, activation: hidden layers of the heads; for images also the width of the layer between eyes and heads.
        num_envs, rollout_steps: lanes, and transitions of each in a rollout.
        epochs, minibatches: passes over a rollout, parts of each pass.
        gae_lambda: of the advantages (GAE, 1506.02438). clip, value_clip: of ratios and of values (null: values are not clipped).
        value_coef, entropy_coef: weights of their losses. normalise_advantage: to mean 0 and deviation 1 in every minibatch.
        target_kl: ends the passes over a rollout once the policy has moved so far (approximate KL divergence); null: never.
        anneal: schedule over agent steps that multiplies the learning rate.
        normalise_return: divides rewards by the running deviation of their discounted return. discount: of that return.
        log_std: of the Gaussian at the start, for continuous actions.
        time_limit: 'bootstrap', or 'terminal': a time limit ends an episode like any other end.
        eval_greedy: evaluation takes the likeliest action; else it samples.
        value_gain: of the orthogonal weights of the last layer of values.
        intrinsic: there will be a bonus for exploration."""

    overlap = False

    def __init__(self, *, obs_spec: ObsSpec, action_spec: ActionSpec, recipes: dict[str, Any], num_envs: int, encoder: str = 'auto',
                 encoder_hidden_dim: int = 256, encoder_layers: int = 1, normalise_obs: bool = False, shared: bool = True, lr: float = 2.5e-4,
                 weight_decay: float = 0.0, adam_beta: float = 0.9, adam_eps: float = 1e-5, lr_decay_steps: int = 0, grad_clip: float | None = 0.5,
                 hidden_dim: int = 512, depth: int = 0, activation: str = 'relu', trunk_dim: int = 50, layer_norm: bool = False,
                 rollout_steps: int = 128, epochs: int = 4, minibatches: int = 4, gae_lambda: float = 0.95, clip: float | str = 0.1,
                 value_clip: float | None = 0.1, value_coef: float = 0.5, entropy_coef: float = 0.01, normalise_advantage: bool = True,
                 target_kl: float | None = None, anneal: float | str = 1.0, normalise_return: bool = False, discount: float = 0.99,
                 log_std: float = 0.0, time_limit: Literal['bootstrap', 'terminal'] = 'bootstrap', eval_greedy: bool = True,
                 value_gain: float = 1.0, intrinsic: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        for key, count in (('rollout_steps', rollout_steps), ('epochs', epochs), ('minibatches', minibatches)):
            require(count >= 1, f'agent.{key}', count, '1 or more')
        require(depth >= 0, 'agent.depth', depth, '0 or more')
        require(activation in ACTIVATIONS, 'agent.activation', activation, f'one of {", ".join(ACTIVATIONS)}')
        require(0 <= gae_lambda <= 1, 'agent.gae_lambda', gae_lambda, 'a number from 0 to 1')
        require(num_envs * rollout_steps >= minibatches, 'agent.minibatches', minibatches, f'no more than num_envs × agent.rollout_steps = '
                f'{num_envs * rollout_steps}')
        require(not normalise_advantage or num_envs * rollout_steps >= 2 * minibatches, 'agent.minibatches', minibatches,
                f'at most {num_envs * rollout_steps // 2}: advantages are normalised over two transitions or more (num_envs × agent.rollout_steps = '
                f'{num_envs * rollout_steps})')
        for key, least in (('value_clip', value_clip), ('target_kl', target_kl)):
            require(least is None or least > 0, f'agent.{key}', least, 'more than 0, or null')
        self.action_spec, self.discrete, self.grad_clip, self.lr = action_spec, action_spec.discrete, grad_clip, lr
        self.num_envs, self.rollout_steps, self.epochs, self.minibatches = num_envs, rollout_steps, epochs, minibatches
        self.steps_per_learn = epochs * minibatches
        self.gae_lambda, self.value_clip, self.value_coef, self.entropy_coef = gae_lambda, value_clip, value_coef, entropy_coef
        self.normalise_advantage, self.target_kl, self.terminal_limit, self.eval_greedy = normalise_advantage, target_kl, time_limit == 'terminal', eval_greedy
        self.clip, self.anneal = schedule(clip, 'agent.clip'), schedule(anneal, 'agent.anneal')
        for step in (0, 10 ** 12):
            require(self.clip(step) >= 0, 'agent.clip', clip, '0 or more throughout')
            require(self.anneal(step) >= 0, 'agent.anneal', anneal, '0 or more throughout')
        self.intrinsic = intrinsic
        self.extras = {'log_prob': Extra(), 'value': Extra((1 + intrinsic,))} | ({} if self.discrete else {'drawn': Extra(action_spec.shape)})

        kind = encoder_kind(encoder, obs_spec, images='nature', vectors='identity', hidden_dim=encoder_hidden_dim, layers=encoder_layers)
        if obs_spec.is_image:
            kind |= {'projection': kind.get('projection', 'LinearReLU'), 'projection_dim': hidden_dim}
        self.aug = build(recipes.get('aug'), 'Blocks.Augmentations.Null', 'recipes.aug', input_shape=obs_spec.stacked_shape)

        def eyes() -> Encoder:
            return Encoder(obs_spec, recipes['encoder'], **{'projection_dim': trunk_dim} | kind, input_shape=self.aug.output_shape, layer_norm=layer_norm,
                           normalise=normalise_obs)
        self.encoder = eyes()
        self.critic_encoder = None if shared else eyes()
        sizes: dict[str, Any] = {'hidden_dim': hidden_dim, 'depth': depth, 'activation': activation, 'layer_norm': layer_norm, 'trunk_dim': trunk_dim}
        self.actor = OpenActor(self.encoder.repr_shape, action_spec, recipes['actor'], log_std=log_std, **sizes)
        self.critic = ValueCritic(self.encoder.repr_shape, recipes['critic'], values=1 + intrinsic, **sizes)
        self.return_normaliser = ReturnNormaliser(num_envs, discount) if normalise_return else None
        for block in self.learners:
            redraw(block, init_orthogonal_relu)
        scale_last(self.actor.pi_head, 0.01)
        scale_last(self.critic.v_head, value_gain)
        self.to(self.device)
        optim: dict[str, Any] = {'lr': lr, 'weight_decay': weight_decay, 'betas': (adam_beta, 0.999), 'eps': adam_eps, 'lr_decay_steps': lr_decay_steps}
        for block, name in zip(self.learners, ('encoder', 'actor', 'critic', 'encoder'), strict=False):
            block.equip(recipes[name], f'recipes.{name}', **optim)
        self.loss = self.maybe_compiled(self.minibatch_loss)

    @property
    def learners(self) -> list[Block]:
        return [self.encoder, self.actor, self.critic, *([self.critic_encoder] if self.critic_encoder else [])]

    # --- acting

    @torch.no_grad()
    def act(self, step: Step, state: Any = None, greedy: bool = False) -> tuple[Tensor, dict[str, Tensor], Any]:
        if not greedy:
            for encoder in filter(None, (self.encoder, self.critic_encoder)):
                encoder.observe(step.obs)
        with self.autocast():
            policy, value = self.judge(self.aug.evaluate(step.obs), value=not greedy)
        if not greedy and self.device.type == 'cpu' and not math.isfinite(told := value.sum().item()):
            raise NonFinite('the value of what is seen', told)
        if greedy and self.eval_greedy:
            return policy.best if self.discrete else policy.best.clamp(-1, 1), {}, state
        drawn = policy.sample(self.evaluating if greedy else self.acting)
        action = drawn if self.discrete else drawn.clamp(-1, 1)
        if greedy:
            return action, {}, state
        return action, {'log_prob': policy.log_prob(drawn), 'value': value} | ({} if self.discrete else {'drawn': drawn}), state

    @torch.no_grad()
    def predict(self, obs: Tensor, classes: int) -> Tensor:
        """Its likeliest action, whatever `eval_greedy` says of games."""
        with self.autocast():
            best = self.judge(self.aug.evaluate(obs), value=False)[0].best
        return F.one_hot(best, classes).float() if self.discrete else best.float().clamp(-1, 1)

    def judge(self, obs: Tensor, value: bool = True) -> tuple[Any, Tensor]:
        """→ policy, values (B, heads) float32 (empty unless asked for)."""
        representation = self.encoder(obs)
        policy = self.actor(representation)
        if not value:
            return policy, obs.new_empty(0)
        return policy, self.critic(representation if self.critic_encoder is None else self.critic_encoder(obs))

    def value(self, obs: Tensor) -> Tensor:
        """Values (B, heads) float32: of rewards, and of bonuses."""
        with self.autocast():
            return self.critic((self.critic_encoder or self.encoder)(obs))

    # --- learning

    def learn(self, replay: Replay) -> dict[str, Tensor]:
        self.mode(training=False)  # values and features are those that acting had
        rollout = replay.latest(self.rollout_steps, obs=False)
        indices = rollout.indices.flatten()
        seen = self.seen(replay, rollout)
        bonus: Tensor | None = None
        told: dict[str, Tensor] = {}
        if self.bonus is not None and seen is not None:
            with self.autocast():
                bonus, told = self.bonus.rolled(seen, self.num_envs)
        advantage, target = self.judged(replay, rollout, bonus)
        self.mode(training=True)
        # schedules are read where the rollout began: at the end of the last one they are 0
        began = max(0, self.step - self.rollout_steps * self.num_envs * Parallel.world_size)
        columns = {'action': rollout.action if self.discrete else rollout.extras['drawn'], 'log_prob': rollout.extras['log_prob'],
                   'value': rollout.extras['value'], 'advantage': advantage, 'target': target}
        flat = {name: x.flatten(0, 1) for name, x in columns.items()}
        for block in self.learners:
            for group in block.optim.param_groups:
                if block.scheduler is None:
                    group['lr'] = self.lr * self.anneal(began)
        clip = torch.tensor(self.clip(began), device=self.device)
        total: dict[str, Tensor] = {}
        count, furthest = 0, torch.zeros((), device=self.device)
        for _ in range(self.epochs):
            for part in torch.randperm(len(indices), generator=self.learning, device=self.device).tensor_split(self.minibatches):
                obs = replay.observations(indices[part.cpu()]).to(self.device)
                loss, metrics = self.loss(self.aug(obs, self.learning), clip, **{name: x[part] for name, x in flat.items()})
                norm = optimise(loss, *self.learners, name='loss', grad_clip=self.grad_clip or math.inf)
                metrics = metrics | {'grad_norm': norm}
                furthest = furthest.maximum(metrics['approx_kl'])
                if self.bonus is not None and seen is not None:
                    metrics = metrics | self.bonus.learn(seen[part], self)
                total = {name: total.get(name, 0) + value for name, value in metrics.items()}
                count += 1
                self.update_count += 1
            if self.bonus is not None:
                self.bonus.follow()
            if self.target_kl is not None and metrics['approx_kl'] > self.target_kl:
                break
        told |= self.summary(rollout, advantage, target) | {'approx_kl_max': furthest, 'lr': torch.tensor(self.encoder.optim.param_groups[0]['lr'])}
        return {name: value / count for name, value in total.items()} | told

    def summary(self, rollout: Rollout, advantage: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Means and deviations of what a rollout brought; those of bonuses' own head are called intrinsic."""
        told = {'step_reward': rollout.reward.mean(), 'advantage_mean': advantage.mean(), 'advantage_std': advantage.std()}
        for head, prefix in enumerate(('', 'intrinsic_')[:target.shape[-1]]):
            returns, value = target[..., head], rollout.extras['value'][..., head]
            told |= {f'{prefix}return_mean': returns.mean(), f'{prefix}return_std': returns.std(), f'{prefix}value_mean': value.mean(),
                     f'{prefix}value_std': value.std(), f'{prefix}explained_variance': 1 - (returns - value).var() / returns.var()}
        return told

    @torch.no_grad()
    def seen(self, replay: Replay, rollout: Rollout) -> Seen | None:
        """What the bonus, if there is one, looks at in a rollout, lane after lane."""
        if self.bonus is None:
            return None
        positions = torch.cat([rollout.indices, torch.from_numpy(replay.open)[:, None]], 1)
        with self.autocast():
            shown = torch.cat([self.bonus.see(replay.observations(part).to(self.device)) for part in positions.flatten().split(1024)])
        shown = shown.unflatten(0, positions.shape)
        return Seen(shown[:, :-1].flatten(0, 1), rollout.action.flatten(0, 1), shown[:, 1:].flatten(0, 1))

    @torch.no_grad()
    def judged(self, replay: Replay, rollout: Rollout, bonus: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """→ advantages (N, T) and value targets (N, T, heads) of a rollout. bonus: (N, T), normalised."""
        reward, value, ended = rollout.reward, rollout.extras['value'], rollout.terminated | rollout.truncated
        if self.return_normaliser is not None:
            reward = self.return_normaliser(reward, ended)
        discount = rollout.discount.masked_fill(rollout.truncated, 0) if self.terminal_limit else rollout.discount
        last = self.value(self.aug.evaluate(replay.observations(replay.open).to(self.device)))
        next_value = torch.cat([value[:, 1:], last[:, None]], 1)  # at the end of an episode, of what opens the next
        true_next = next_value[..., 0].clone()
        if len(rollout.final_obs):
            true_next.view(-1)[rollout.final_index] = self.value(self.aug.evaluate(rollout.final_obs))[:, 0]
        advantage = advantages(reward, value[..., 0], true_next, discount, ended, self.gae_lambda)
        if self.bonus is None or bonus is None:
            return advantage, (advantage + value[..., 0])[..., None]
        never = torch.zeros_like(ended)
        other = advantages(bonus, value[..., 1], next_value[..., 1], torch.full_like(bonus, self.bonus.discount), never, self.gae_lambda)
        return self.bonus.extrinsic_weight * advantage + self.bonus.weight * other, torch.stack([advantage, other], -1) + value

    def minibatch_loss(self, obs: Tensor, clip: Tensor, action: Tensor, log_prob: Tensor, value: Tensor, advantage: Tensor,
                       target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Policy, value and entropy losses of a minibatch (1707.06347, eq. 9)."""
        with self.autocast():
            policy, predicted = self.judge(obs)
        if self.normalise_advantage:
            advantage = standardised(advantage)
        log_ratio = policy.log_prob(action) - log_prob
        policy_loss, clipped = clipped_surrogate(log_ratio, advantage, clip)
        value_loss = clipped_value_loss(predicted, value, target, self.value_clip)
        entropy = policy.entropy().mean()
        loss = policy_loss + self.value_coef * value_loss - self.entropy_coef * entropy
        with torch.no_grad():
            kl = Parallel.mean((log_ratio.exp() - 1 - log_ratio).mean())  # which may end the passes: in every process at once
        return loss, {'policy_loss': policy_loss.detach(), 'value_loss': value_loss.detach(), 'entropy': entropy.detach(), 'approx_kl': kl,
                      'clip_fraction': clipped}
