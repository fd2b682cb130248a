"""Bonuses: what the paper's formulas say of them, by hand and in float64; whom they train; what they leave alone."""
import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from Blocks.Auxiliary import Parts
from Blocks.Exploration import RND
from Blocks.Exploration.Bonus import ForwardFilter, Seen
from Blocks.Normalisers import RunningMoments, moments
from Datasets.Replay import Replay
from Datasets.Specs import ActionSpec, ObsSpec
from Hparams.Compose import compose_args
from tests.Agents.small import BOX, DISCRETE, IMAGE, VECTOR, filled_replay, make_dqn, observations, parameters, same
from tests.Agents.test_ppo import make as make_ppo
from tests.Agents.test_ppo import rolled
from tests.Agents.test_sac import PIXELS
from tests.Agents.test_sac import make as make_sac

RECIPE = {'_target_': 'Blocks.Exploration.RND'}


def explored(agent, obs=VECTOR, action=DISCRETE, num_envs=3, **options):
    agent.reward_exploration({'rnd': RECIPE | options}, obs, action, num_envs, lr=1e-2, batch_size=16)
    return agent


def ppo(obs=VECTOR, action=DISCRETE, seed=0, rnd=None, **options):
    return explored(make_ppo(obs, action, seed=seed, intrinsic=True, **options), obs, action, **rnd or {})


def rnd(obs=VECTOR, **options):
    return explored(make_dqn(obs), obs, **options).bonus


# --- statistics

def test_the_filter_runs_over_time_and_through_rollouts():
    filtered = ForwardFilter(2, 0.99)
    filtered.observe(torch.tensor([[1.0, 2, 3], [0, 0, 1]]))
    assert filtered.filtered.tolist() == pytest.approx([5.9601, 1])
    values = np.array([1, 2.99, 5.9601, 0, 0, 1])
    count, mean, var = 1e-4, 0.0, 1.0
    delta, total = values.mean() - mean, count + 6
    expected = (var * count + values.var() * 6 + delta ** 2 * count * 6 / total) / total
    assert filtered.var.item() == pytest.approx(expected, rel=1e-12) and filtered.count.item() == pytest.approx(6.0001)
    filtered.observe(torch.tensor([[4.0], [0.0]]))
    assert filtered.filtered.tolist() == pytest.approx([4 + 0.99 * 5.9601, 0.99])


def test_moments_merge_as_the_specification_says():
    running = RunningMoments(count=1e-4)
    for mean, var, n in ((2, 4, 10), (5, 1, 30)):
        running.merge(n, torch.tensor(float(mean), dtype=torch.float64), torch.tensor(float(var), dtype=torch.float64))
    assert (running.mean.item(), running.var.item(), running.count.item()) == pytest.approx((4.2499894, 3.4375391, 40.0001), abs=1e-7)


@pytest.mark.parametrize('shape', [(2500, 1, 6, 5), (3000, 4)])
def test_moments_of_bytes_are_exact(shape):
    x = torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    x[:, ..., 0] = 255  # bright and constant
    n, mean, var = moments(x)
    exact = x.numpy().astype(np.float64)
    np.testing.assert_allclose(mean.numpy(), exact.mean(0), rtol=1e-13)
    np.testing.assert_allclose(var.numpy(), exact.var(0), rtol=1e-9, atol=1e-9)
    assert n == len(x) and (var[..., 0] == 0).all()


# --- networks

def test_networks_are_those_of_the_paper():
    screen = ObsSpec((1, 84, 84), frame_stack=4)
    bonus = RND(parts=Parts(None, None, None, screen, ActionSpec(num_actions=18)))

    def count(module):
        return sum(p.numel() for p in module.parameters())
    assert bonus.seen_shape == (1, 84, 84)
    assert (round(count(bonus.predictor), -3), round(count(bonus.target), -3)) == (2_203_000, 1_678_000)
    assert [type(layer).__name__ for layer in bonus.target.layers] == [*['Conv2d', 'LeakyReLU'] * 3, 'Flatten']
    assert [type(layer).__name__ for layer in bonus.predictor.layers][7:] == ['Linear', 'ReLU', 'Linear', 'ReLU']
    for layer in [layer for net in (bonus.target, bonus.predictor) for layer in net.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]:
        weight = layer.weight.flatten(1).double()
        gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        torch.testing.assert_close(gram, 2 * torch.eye(len(gram), dtype=torch.float64), atol=1e-4, rtol=0)
        assert not layer.bias.any()


def test_the_input_is_one_frame_standardised_within_five():
    bonus = rnd(IMAGE)
    obs = observations(40, IMAGE)
    seen = bonus.see(obs)
    assert torch.equal(seen, obs[:, 1:]), 'the newest of two'
    bonus.observe(seen[:20])
    mean, var = seen[:20].double().mean(0), seen[:20].double().var(0, unbiased=False)
    torch.testing.assert_close(bonus.standardised(seen).double(), ((seen.double() - mean) / var.sqrt()).clamp(-5, 5), atol=1e-4, rtol=1e-4)
    bright = torch.full((20, 1, 36, 36), 254, dtype=torch.uint8)
    bright[0] = 253
    for _ in range(100):
        bonus.observe(bright)
    exact = ((bright.double() - bonus.moments.mean) / bonus.moments.var.sqrt()).clamp(-5, 5)
    torch.testing.assert_close(bonus.standardised(bright).double(), exact, atol=1e-4, rtol=1e-4)
    assert bonus.standardised(observations(20, IMAGE, 3)[:, 1:]).abs().max() == 5


def test_vectors_that_are_seen_stay_as_they_are():
    bonus, obs = rnd(), observations(5)
    before = obs.clone()
    bonus.bonus(Seen(obs, torch.zeros(5), bonus.see(obs)))
    assert torch.equal(obs, before)


def test_a_bonus_is_the_mean_square_of_what_is_not_predicted():
    bonus, x = rnd(), observations(6)
    bonus.observe(observations(50, seed=4))
    told = bonus.bonus(Seen(x, torch.zeros(6), x))
    z = ((x.double() - bonus.moments.mean) / bonus.moments.var.sqrt()).clamp(-5, 5)

    def through(net):
        h = z
        for layer in [*net.layers, net.last]:
            h = h @ layer.weight.double().T + layer.bias.double() if isinstance(layer, nn.Linear) else layer(h.clone())
        return h
    torch.testing.assert_close(told.double(), (through(bonus.predictor) - through(bonus.target)).square().mean(1), rtol=1e-4, atol=1e-6)
    assert (told > 0).all()


# --- learning

def test_only_the_predictor_learns_and_what_is_seen_often_becomes_dull():
    agent = explored(make_dqn(), num_envs=2)
    bonus, replay = agent.bonus, filled_replay(VECTOR, DISCRETE)
    bonus.observe(observations(100))
    before = {name: parameters(getattr(bonus, name)) for name in ('predictor', 'target')}
    others = [parameters(block) for block in (agent.encoder, agent.critic)]
    x = replay.sample(64).next_obs.clone()
    first = bonus.bonus(Seen(x, torch.zeros(64), x)).mean()
    for _ in range(30):
        bonus.learn_drawn(replay, agent)
    assert bonus.bonus(Seen(x, torch.zeros(64), x)).mean() < 0.2 * first
    assert not same(before['predictor'], parameters(bonus.predictor)) and same(before['target'], parameters(bonus.target))
    assert all(same(old, parameters(block)) for old, block in zip(others, (agent.encoder, agent.critic)))
    held = {id(p) for group in bonus.optim.param_groups for p in group['params']}
    assert held == {id(p) for p in bonus.predictor.parameters()}


@pytest.mark.parametrize('lanes, share', [(1, 1), (32, 1), (64, 0.5), (128, 0.25), (1024, 0.03125)])
def test_the_predictor_learns_from_its_share(lanes, share, monkeypatch):
    bonus, seen = rnd(num_envs=lanes), []
    assert bonus.update_proportion == share
    monkeypatch.setattr(bonus, 'standardised', lambda x: seen.append(len(x)) or x.float())
    obs = observations(4000)
    for _ in range(5):
        bonus.loss(Seen(obs, torch.zeros(4000), obs))
    assert sum(seen) / 20000 == pytest.approx(share, abs=3 * math.sqrt(share * (1 - share) / 20000))


def test_the_loss_is_the_mean_over_what_is_kept():
    bonus, x = rnd(num_envs=64), observations(200)
    keep = torch.rand(200, generator=torch.Generator().manual_seed(1)) < 0.5
    bonus.keeps.manual_seed(1)
    loss = bonus.loss(Seen(x, torch.zeros(200), x))
    error = (bonus.predictor(bonus.standardised(x)) - bonus.target(bonus.standardised(x))).square().mean(1)
    torch.testing.assert_close(loss, (error * keep).sum() / keep.sum())


# --- rollouts

def test_a_rollout_is_scaled_by_a_deviation_that_includes_it_and_looked_at_with_statistics_that_do_not():
    agent = ppo()
    bonus, replay = agent.bonus, rolled(agent, VECTOR, DISCRETE, ends=[(4, 1, True), (6, 2, False)])
    bonus.observe(observations(50, seed=9))
    seen = agent.seen(replay, replay.latest(10))
    shown = observations(33, VECTOR, 7).unflatten(0, (11, 3)).transpose(0, 1)  # what the lanes showed, final observations left out
    assert torch.equal(seen.now, shown[:, :-1].flatten(0, 1)) and torch.equal(seen.next, shown[:, 1:].flatten(0, 1))
    raw = bonus.bonus(seen).view(3, 10).double()
    moments_before = bonus.moments.mean.clone()
    bonus_input = copy.deepcopy(bonus)  # before its statistics take the rollout in
    told, metrics = bonus.rolled(seen, 3)
    returns, f = [], np.zeros(3)
    for t in range(10):
        f = 0.99 * f + raw[:, t].detach().numpy()
        returns.append(f)
    values = np.concatenate(returns)
    std = math.sqrt((1e-4 + 30 * values.var() + values.mean() ** 2 * 1e-4 * 30 / 30.0001) / 30.0001)
    torch.testing.assert_close(told.double(), raw.detach() / std, rtol=1e-4, atol=1e-6)
    assert metrics['rnd_bonus'] == told.mean() and bonus.filter.count.item() == pytest.approx(30.0001)
    x = bonus_input.standardised(seen.next).double()
    target = bonus.target(x.float()).double().numpy()
    expected = {'scale': 1 / std, 'target_var': target.var(0).mean(), 'target_max': np.abs(target).max(), 'input_var': x.var(0, correction=0).mean(),
                'input_max': x.abs().max(), 'seen_mean': bonus.moments.mean.mean(), 'seen_var': bonus.moments.var.mean()}
    assert {key: metrics[f'rnd_{key}'].item() for key in expected} == pytest.approx({key: float(value) for key, value in expected.items()}, rel=1e-3)
    everything = torch.cat([observations(50, seed=9), seen.now])
    assert not torch.equal(bonus.moments.mean, moments_before)
    torch.testing.assert_close(bonus.moments.mean, everything.double().mean(0), rtol=1e-5, atol=1e-5)


def test_advantages_of_bonuses_go_through_the_ends_of_episodes():
    agent = ppo(gae_lambda=0.8, rnd={'discount': 0.9, 'weight': 0.5, 'extrinsic_weight': 3})
    replay = rolled(agent, VECTOR, DISCRETE, ends=[(4, 1, True), (6, 2, False), (9, 0, True)])
    rollout = replay.latest(10)
    bonus = torch.rand(3, 10, generator=torch.Generator().manual_seed(0))
    advantage, target = agent.judged(replay, rollout, bonus)
    value = rollout.extras['value'].double()
    last = agent.value(replay.observations(replay.open)).detach().double()[:, 1]
    expected, later, follow = torch.zeros(3, 10, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), last
    for t in range(9, -1, -1):
        later = bonus[:, t] + 0.9 * follow - value[:, t, 1] + 0.9 * 0.8 * later
        expected[:, t], follow = later, value[:, t, 1]
    alone, _ = make_like(agent).judged(replay, rollout)
    torch.testing.assert_close(advantage.double(), 3 * alone.double() + 0.5 * expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(target[..., 1].double(), expected + value[..., 1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(target[..., 0], alone + rollout.extras['value'][..., 0])


def make_like(agent):
    """The same agent, which does not look for a bonus."""
    twin = make_ppo(intrinsic=True, gae_lambda=agent.gae_lambda)
    twin.load_state_dict(agent.state_dict(), strict=False)
    return twin


@pytest.mark.parametrize('obs, action, options', [
    (VECTOR, DISCRETE, {}), (IMAGE, DISCRETE, {'precision': 'bf16'}), (IMAGE, BOX, {'rnd': {'input': 'encoder'}}),
    (VECTOR, BOX, {'encoder': 'mlp', 'rnd': {'input': 'encoder_ema'}, 'normalise_obs': True})], ids=str)
def test_everything_learns_from_a_rollout(obs, action, options):
    agent = ppo(obs, action, lr=1e-2, **options)
    learners = [*agent.learners, agent.bonus.predictor]
    before, target = [parameters(block) for block in learners], parameters(agent.bonus.target)
    metrics = agent.improve(rolled(agent, obs, action))
    told = {'rnd_bonus', 'rnd_loss', 'explained_variance', 'intrinsic_explained_variance', 'intrinsic_return_std'}
    assert told <= metrics.keys() and all(value.isfinite() for value in metrics.values())
    assert not any(same(old, parameters(block)) for old, block in zip(before, learners) if old) and same(target, parameters(agent.bonus.target))


def test_the_loss_on_a_fixed_batch_is_the_sum_of_its_terms():
    """Policy, half the square of each value's error, entropy; and the predictor's own."""
    preset = compose_args(['task=atari/montezuma_revenge', 'Agent=RND'])['agent']
    agent = ppo(**{key: preset[key] for key in ('value_coef', 'entropy_coef', 'value_clip', 'normalise_advantage')})
    obs = observations(12)
    action, old = torch.arange(12) % 4, torch.full((12,), -1.3)
    value, target, advantage = torch.zeros(12, 2), torch.randn(12, 2), torch.randn(12)
    loss, _ = agent.minibatch_loss(obs, torch.tensor(0.1), action, old, value, advantage, target)
    policy, predicted = agent.judge(obs)
    ratio = (policy.log_prob(action) - old).exp()
    expected = -torch.min(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage).mean()
    expected = expected + 0.5 * (predicted[:, 0] - target[:, 0]).square().mean() + 0.5 * (predicted[:, 1] - target[:, 1]).square().mean()
    torch.testing.assert_close(loss, expected - 0.001 * policy.entropy().mean())
    loss.backward()
    assert all(p.grad is None for p in agent.bonus.parameters()), 'no gradient of PPO in the bonus'
    agent.zero_grad()
    agent.bonus.loss(Seen(obs, action, obs)).backward()
    assert all(p.grad is None or not p.grad.any() for block in agent.learners for p in block.parameters()), 'and none of its own in the agent'


@pytest.mark.parametrize('input', ['encoder', 'encoder_ema'])
def test_the_encoders_features_without_gradient(input):
    agent = ppo(VECTOR, DISCRETE, encoder='mlp', lr=1e-2, epochs=3, rnd={'input': input, 'ema_tau': 0.1})
    bonus, obs = agent.bonus, observations(8)
    assert bonus.see(obs).shape == (8, *agent.encoder.repr_shape)
    bonus.loss(Seen(obs, torch.zeros(8), bonus.see(obs).detach())).backward()
    assert all(p.grad is None or not p.grad.any() for p in agent.encoder.parameters())
    start = parameters(agent.encoder)
    agent.learn(rolled(agent, VECTOR, DISCRETE))
    if input == 'encoder_ema':
        slow = parameters(bonus.slow_encoder)
        assert not same(start, slow) and not same(slow, parameters(agent.encoder))
    bonus.follow()
    if input == 'encoder_ema':
        expected = [0.9 * old + 0.1 * new for old, new in zip(slow, parameters(agent.encoder))]
        torch.testing.assert_close(parameters(bonus.slow_encoder), expected)


# --- agents that draw

def replay_with_bonus(nstep=3, clip=1.0):
    replay = Replay(VECTOR, DISCRETE, num_envs=1, capacity=50, seed=0, store='ram', discount=0.9, window=nstep, reward_clip=clip,
                    extras={'bonus': {'mutable': False}, 'other': {}})
    replay.begin(np.zeros((1, 3), np.float32))
    for t in range(12):
        ended = np.array([t == 6])
        replay.add(np.array([0]), np.array([float(t)], np.float32), ended, np.zeros(1, bool), np.full((1, 3), t + 1, np.float32), ended,
                   bonus=torch.tensor([0.5 * t]), other=torch.tensor([7.0 * t]))
    return replay


def test_bonuses_are_added_scaled_inside_the_nstep_return():
    replay = replay_with_bonus()
    index = replay.latest(12).indices.flatten()

    def expected(scale):
        rewards = [min(t, 1.0) + scale * 0.5 * t for t in range(12)]
        ends = [t == 6 for t in range(12)]
        told = []
        for t in range(10):
            total = 0.0
            for k in range(3):
                total += 0.9 ** k * rewards[t + k]
                if ends[t + k]:
                    break
            told.append(total)
        return told
    for scale in (0.0, 2.0, 0.25):
        replay.bonus_scale = scale
        batch = replay.gather(index[:10], nstep=3)
        assert batch.reward.tolist() == pytest.approx(expected(scale), rel=1e-6), scale
        assert batch.extras['other'].tolist() == [7.0 * t for t in range(10)] and 'bonus' not in batch.extras
        assert replay.gather(index[:10], nstep=1).reward.tolist() == pytest.approx([min(t, 1.0) + scale * 0.5 * t for t in range(10)])
        shown = replay.gather(index[:8], horizon=2).sequence.reward  # losses that predict rewards are shown those of the environment
        assert shown.tolist() == [[min(t, 1), min(t + 1, 1) * (t != 6)] for t in range(8)]


def test_rows_that_close_carry_their_bonus():
    agent = explored(make_dqn(), num_envs=4, weight=0.5)
    assert list(agent.extras) == ['bonus'] and not make_dqn().extras
    now, after = observations(4), observations(4, seed=8)
    expected = agent.bonus.bonus(Seen(now, torch.zeros(4), after))
    told = agent.bonuses(now, torch.zeros(4, dtype=torch.int64), after)['bonus']
    torch.testing.assert_close(told, expected.detach())
    assert agent.bonus.scale == pytest.approx(0.5 / math.sqrt(agent.bonus.filter.var))
    assert agent.bonus.moments.count.item() == pytest.approx(4.0001), 'seen afterwards'
    assert ppo().bonuses(now, torch.zeros(4), after) == {}


@pytest.mark.parametrize('make, obs, action, options', [
    (make_dqn, VECTOR, DISCRETE, {}), (make_sac, VECTOR, BOX, {}), (make_dqn, IMAGE, DISCRETE, {}), (make_sac, PIXELS, BOX, {'input': 'encoder'})],
                         ids=['dqn', 'sac', 'dqn from images', 'sac from images'])
def test_any_agent_that_draws(make, obs, action, options):
    agent = explored(make(obs, action), obs, action, num_envs=2, **options)
    agent.bonus.scale, seen = 3.0, []
    replay = filled_replay(obs, action)
    gather = replay.gather
    replay.gather = lambda *args, **options: seen.append(replay.bonus_scale) or gather(*args, **options)
    metrics = agent.improve(replay)
    assert metrics['rnd_loss'] > 0 and metrics['rnd_scale'] == 3 and set(seen) == {3.0}


def test_a_bonus_without_a_bonus_is_refused_at_once():
    with pytest.raises(ValueError, match='explore.rnd=Bonus: expected a subclass of Bonus that defines bonus'):
        explored(make_dqn(), _target_='Blocks.Exploration.Bonus')
