"""PPO: advantages and losses by hand and in float64, one learn against a re-implementation, what the true final observation is for."""
import math

import pytest
import torch

import Run
from Agents.PPO import PPO
from Blocks.Actors import Categorical, DiagonalNormal
from Blocks.Losses import advantages, clipped_surrogate, clipped_value_loss
from Datasets.Replay import Replay
from Datasets.RunReplay import RunReplay
from Datasets.Specs import ObsSpec
from Hparams.Compose import compose_args
from Hparams.Registry import row
from tests.Agents.small import BOX, DISCRETE, IMAGE, TINY_EYES, VECTOR, look, observations, parameters, same
from tests.runs import folder, rows, values
from Utils import Args, NonFinite


def make(obs=VECTOR, action=DISCRETE, recipes=None, seed=0, **options):
    torch.manual_seed(seed)
    recipes = {'aug': {}, 'encoder': {}, 'critic': {}, 'actor': {}} | (TINY_EYES if obs.is_image else {}) | (recipes or {})
    return PPO(obs_spec=obs, action_spec=action, recipes=recipes, seed=seed,
               **{'hidden_dim': 8, 'num_envs': 3, 'rollout_steps': 10, 'minibatches': 2, 'depth': 0 if obs.is_image else 1} | options)


def rolled(agent, obs, action, steps=10, ends=()):
    """A replay that the agent has acted into. ends: (time, lane, terminated) where an episode ends."""
    lanes = agent.num_envs
    replay = Replay(obs, action, num_envs=lanes, capacity=lanes * steps, seed=0, window=steps, discount=0.9, extras=agent.extras)
    shown = observations(lanes * (steps + 1), obs, 7).unflatten(0, (steps + 1, lanes))
    frame = shown[:, :, -obs.shape[0]:] if obs.is_image else shown
    if obs.is_image:  # two frames a stack, nothing before the first
        shown = torch.cat([torch.cat([torch.zeros_like(frame[:1]), frame[:-1]]), frame], 2)
    replay.begin(frame[0].numpy())
    rewards = torch.randn(steps, lanes, generator=torch.Generator().manual_seed(3))
    for t in range(steps):
        chosen, extras, _ = agent.act(look_at(shown[t]))
        terminated, truncated = torch.zeros(lanes, dtype=torch.bool), torch.zeros(lanes, dtype=torch.bool)
        for time, lane, dead in ends:
            if time == t:
                (terminated if dead else truncated)[lane] = True
        ended = (terminated | truncated).numpy()
        final = ended.nonzero()[0]
        replay.add(chosen.numpy(), rewards[t].numpy(), terminated.numpy(), truncated.numpy(), frame[t + 1].numpy(), ended, final,
                   frame[t + 1].numpy()[final] + 1 if not obs.is_image else frame[t + 1].numpy()[final], **extras)
    return replay


def look_at(obs):
    step = look(len(obs))
    step.obs = obs
    return step


# --- advantages

def brute(reward, value, next_value, discount, ended, lam):
    """A_t = Σ_k (γλ)^k δ_{t+k}, until the episode ends, in float64."""
    n, steps = reward.shape
    out = torch.zeros(n, steps, dtype=torch.float64)
    for i in range(n):
        for t in range(steps):
            weight = 1.0
            for k in range(t, steps):
                out[i, t] += weight * (reward[i, k] + discount[i, k] * next_value[i, k] - value[i, k])
                weight *= float(discount[i, k]) * lam
                if ended[i, k]:
                    break
    return out


def test_advantages_are_the_sums_of_the_paper():
    random = torch.Generator().manual_seed(0)
    reward, value, next_value = (torch.randn(4, 30, generator=random) for _ in range(3))
    terminated, truncated = (torch.rand(4, 30, generator=random) < 0.1 for _ in range(2))
    discount = 0.97 * (~terminated).float()
    ended = terminated | truncated
    torch.testing.assert_close(advantages(reward, value, next_value, discount, ended, 0.9).double(),
                               brute(reward.double(), value.double(), next_value.double(), discount, ended, 0.9), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('episodic, expected', [(True, [0.545, -0.25, 0.61]), (False, [1.347224, 0.8642, 0.61])])
def test_advantages_by_hand(episodic, expected):
    value, done = torch.tensor([[0.5, 0.25, 0.75]]), torch.tensor([[False, episodic, False]])
    discount = 0.9 * (~done).float()
    told = advantages(torch.tensor([[1.0, 0, 1]]), value, torch.tensor([[0.25, 0.75, 0.4]]), discount, done, 0.8)
    assert told[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize('time_limit', ['bootstrap', 'terminal'])
@pytest.mark.parametrize('shared', [True, False])
def test_a_time_limit_is_worth_its_true_final_observation(time_limit, shared):
    agent = make(time_limit=time_limit, shared=shared, encoder='mlp', gae_lambda=0.7)
    replay = rolled(agent, VECTOR, DISCRETE, ends=[(4, 1, True), (6, 2, False), (9, 0, False)])
    rollout = replay.latest(10)
    advantage, target = agent.judged(replay, rollout)
    value = rollout.extras['value'][..., 0]
    torch.testing.assert_close(value, agent.value(rollout.obs.flatten(0, 1)).view(3, 10).detach())
    follow = torch.cat([value[:, 1:], agent.value(rollout.bootstrap_obs).detach()], 1)
    shown = observations(33, VECTOR, 7).unflatten(0, (11, 3))
    for time, lane in ((6, 2), (9, 0)):
        follow[lane, time] = agent.value(shown[time + 1, lane][None] + 1).detach()[0, 0]  # what `rolled` showed at the end
    discount = torch.full((3, 10), 0.9)
    discount[1, 4] = 0
    if time_limit == 'terminal':
        discount[2, 6] = discount[0, 9] = 0
    ended = rollout.terminated | rollout.truncated
    expected = brute(rollout.reward.double(), value.double(), follow.double(), discount, ended, 0.7)
    torch.testing.assert_close(advantage.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(target[..., 0], advantage + value)


# --- losses

def test_the_surrogate_by_hand():
    log_ratio = torch.tensor([math.log(1.5), math.log(0.5), math.log(1.05), math.log(0.5)])
    advantage = torch.tensor([2.0, 2.0, -1.0, -1.0])
    loss, outside = clipped_surrogate(log_ratio, advantage, torch.tensor(0.2))
    assert loss.item() == pytest.approx(-(1.2 * 2 + 0.5 * 2 - 1.05 - 0.8) / 4) and outside.item() == 0.75


def test_the_value_loss_by_hand():
    value, before, target = torch.tensor([1.0, 3.0]), torch.tensor([0.9, 1.0]), torch.tensor([0.0, 4.0])
    assert clipped_value_loss(value, before, target, None).item() == pytest.approx(0.5 * (1 + 1) / 2)
    assert clipped_value_loss(value, before, target, 0.5).item() == pytest.approx(0.5 * (1 + (1.5 - 4) ** 2) / 2)


def test_the_distributions_are_torchs():
    random = torch.Generator().manual_seed(0)
    mean, log_std, action = torch.randn(6, 3, generator=random), torch.randn(3, generator=random), torch.randn(6, 3, generator=random)
    ours, theirs = DiagonalNormal(mean, log_std), torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp().expand_as(mean)), 1)
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    logits, choice = torch.randn(6, 4, generator=random), torch.tensor([0, 1, 2, 3, 0, 1])
    ours, theirs = Categorical(logits), torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(ours.log_prob(choice), theirs.log_prob(choice))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())


# --- one learn

@pytest.mark.parametrize('obs, action', [(VECTOR, DISCRETE), (VECTOR, BOX), (IMAGE, DISCRETE)], ids=['vector', 'continuous', 'image'])
def test_before_the_first_step_the_ratio_is_one(obs, action):
    agent = make(obs, action, epochs=1, minibatches=1, normalise_advantage=False, lr=0.0)
    replay = rolled(agent, obs, action)
    rollout = replay.latest(10)
    advantage, _ = agent.judged(replay, rollout)
    metrics = agent.learn(replay)
    assert metrics['approx_kl'].item() == pytest.approx(0, abs=1e-6) and metrics['clip_fraction'] == 0
    assert metrics['policy_loss'].item() == pytest.approx(-advantage.mean().item(), abs=1e-5)


@pytest.mark.parametrize('action', [DISCRETE, BOX], ids=['discrete', 'continuous'])
def test_a_learn_against_a_float64_reimplementation(action):
    """Two epochs of one minibatch, Adam and the clipped norm included."""
    options = {'epochs': 2, 'minibatches': 1, 'lr': 1e-2, 'value_clip': 0.2, 'clip': 0.1, 'entropy_coef': 0.03, 'value_coef': 0.7, 'grad_clip': 0.5,
               'adam_eps': 1e-5, 'activation': 'tanh'}
    agent = make(VECTOR, action, **options)
    replay = rolled(agent, VECTOR, action, ends=[(4, 1, True)])
    rollout = replay.latest(10)
    advantage, target = (x.double().flatten() for x in agent.judged(replay, rollout))
    twin = make(VECTOR, action, **options).double()
    obs, old = rollout.obs.flatten(0, 1).double(), rollout.extras['log_prob'].flatten().double()
    value = rollout.extras['value'].flatten().double()
    taken = rollout.action.flatten() if action.discrete else rollout.extras['drawn'].flatten(0, 1).double()
    weights = [p for block in (twin.actor, twin.critic) for p in block.parameters()]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in weights]

    def forward(head, x):
        first, second = head.layers[0], head.layers[2]
        return torch.tanh(x @ first.weight.T + first.bias) @ second.weight.T + second.bias

    normal, norms, divergences = (advantage - advantage.mean()) / (advantage.std() + 1e-8), [], []
    for step in (1, 2):
        out = forward(twin.actor.pi_head, obs)
        policy = (torch.distributions.Categorical(logits=out) if action.discrete
                  else torch.distributions.Independent(torch.distributions.Normal(out, twin.actor.log_std.exp().expand_as(out)), 1))
        ratio = (policy.log_prob(taken) - old).exp()
        predicted = forward(twin.critic.v_head, obs).squeeze(-1)
        near = value + (predicted - value).clamp(-0.2, 0.2)
        loss = (-torch.min(ratio * normal, ratio.clamp(0.9, 1.1) * normal).mean()
                + 0.7 * 0.5 * torch.max((predicted - target) ** 2, (near - target) ** 2).mean() - 0.03 * policy.entropy().mean())
        grads = torch.autograd.grad(loss, weights)
        norm = torch.sqrt(sum((g ** 2).sum() for g in grads))
        norms.append(float(norm))
        divergences.append((ratio - 1 - ratio.log()).mean().item())
        with torch.no_grad():
            for p, g, (m, v) in zip(weights, grads, moments):
                g = g * min(1.0, 0.5 / (float(norm) + 1e-6))
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                p.sub_(1e-2 * (m / (1 - 0.9 ** step)) / ((v / (1 - 0.999 ** step)).sqrt() + 1e-5))
    metrics = agent.learn(replay)
    for ours, theirs in zip([p for block in (agent.actor, agent.critic) for p in block.parameters()], weights, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=2e-5)
    expected = {'grad_norm': sum(norms) / 2, 'approx_kl_max': max(divergences), 'approx_kl': sum(divergences) / 2, 'advantage_mean': advantage.mean(),
                'advantage_std': advantage.std(), 'return_mean': target.mean(), 'return_std': target.std(), 'value_mean': value.mean(),
                'value_std': value.std(), 'step_reward': rollout.reward.double().mean(), 'lr': 1e-2,
                'explained_variance': 1 - (target - value).var() / target.var()}
    assert {key: metrics[key].item() for key in expected} == pytest.approx({key: float(x) for key, x in expected.items()}, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize('obs, action, options', [
    (VECTOR, DISCRETE, {}), (VECTOR, BOX, {'normalise_obs': True, 'normalise_return': True}), (IMAGE, DISCRETE, {'precision': 'bf16'}),
    (IMAGE, BOX, {'shared': False}), (VECTOR, DISCRETE, {'encoder': 'ofe', 'shared': False, 'target_kl': 0.01})], ids=str)
def test_every_block_learns(obs, action, options):
    agent = make(obs, action, lr=1e-2, **options)
    before = [parameters(block) for block in agent.learners]
    metrics = agent.learn(rolled(agent, obs, action))
    assert all(value.shape == () and value.isfinite() for value in metrics.values())
    assert not any(same(old, parameters(block)) for old, block in zip(before, agent.learners) if old)


def test_a_pass_shows_every_transition_once(monkeypatch):
    agent = make(epochs=3, minibatches=4, lr=0.0)
    replay, seen, loss = rolled(agent, VECTOR, DISCRETE), [], agent.loss
    agent.loss = lambda obs, *rest, **columns: seen.append(obs.clone()) or loss(obs, *rest, **columns)
    agent.learn(replay)
    assert [len(part) for part in seen] == 3 * [8, 8, 7, 7] and agent.update_count == 12
    expected = replay.latest(10).obs.flatten(0, 1)
    passes = [torch.cat(seen[i:i + 4]) for i in (0, 4, 8)]
    assert all(sorted(shown.tolist()) == sorted(expected.tolist()) for shown in passes) and not torch.equal(passes[0], passes[1])


def test_passes_end_when_the_policy_has_moved_far_enough():
    agent = make(lr=0.1, epochs=50, minibatches=1, target_kl=1e-4)
    agent.learn(rolled(agent, VECTOR, DISCRETE))
    assert 1 < agent.update_count < 50


def test_the_learning_rate_and_the_clip_follow_their_schedules():
    """They are those of where the rollout began, 30 steps ago: at the end of the last one they are 0."""
    agent, clips = make(lr=1e-2, anneal='linear(1.0,0.0,100)', clip='linear(0.2,0.0,100)'), []
    loss = agent.loss
    agent.loss = lambda obs, clip, **columns: clips.append(clip.item()) or loss(obs, clip, **columns)
    agent.step = 105
    agent.learn(rolled(agent, VECTOR, DISCRETE))
    assert {group['lr'] for block in agent.learners for group in block.optim.param_groups} == {0.0025}
    assert clips == pytest.approx(8 * [0.05])


def test_the_first_layers_begin_orthogonal_and_the_last_ones_small():
    agent = make(hidden_dim=16, depth=2)
    for head, gain in ((agent.actor.pi_head, 0.01), (agent.critic.v_head, 1.0)):
        first, last = head.layers[0].weight, head.layers[-1].weight
        torch.testing.assert_close(first.T @ first, 2 * torch.eye(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(last @ last.T, gain ** 2 * torch.eye(len(last)), atol=1e-6, rtol=0)
        assert not any(layer.bias.any() for layer in head.layers if hasattr(layer, 'bias'))


# --- presets, as published

ATARI = {'num_envs': 8, 'lr': 2.5e-4, 'adam_eps': 1e-5, 'grad_clip': 0.5, 'discount': 0.99, 'hidden_dim': 512, 'train_steps': 10_000_000, 'rollout_steps': 128,
         'epochs': 4, 'minibatches': 4, 'clip': 0.1, 'value_clip': 0.1, 'entropy_coef': 0.01, 'value_coef': 0.5, 'gae_lambda': 0.95,
         'anneal': 'linear(1.0,0.0,10000000)', 'normalise_return': False, 'normalise_advantage': True, 'reward_clip': 1}  # the 37 details, and their script
CONTROL = {'num_envs': 1, 'lr': 3e-4, 'adam_eps': 1e-5, 'grad_clip': 0.5, 'discount': 0.99, 'hidden_dim': 64, 'train_steps': 1_000_000, 'rollout_steps': 2048,
           'epochs': 10, 'minibatches': 32, 'clip': 0.2, 'value_clip': 0.2, 'entropy_coef': 0.0, 'gae_lambda': 0.95, 'anneal': 'linear(1.0,0.0,1000000)',
           'normalise_obs': True, 'normalise_return': True, 'activation': 'tanh', 'depth': 2, 'log_std': 0.0}  # the same, for continuous control
CLASSIC = {'num_envs': 8, 'lr': 1e-3, 'discount': 0.98, 'rollout_steps': 32, 'epochs': 20, 'minibatches': 1, 'gae_lambda': 0.8,
           'clip': 'linear(0.2,0.0,100000)', 'train_steps': 100_000, 'normalise_return': False}  # RL Baselines3 Zoo


@pytest.mark.parametrize('task, expected', [
    ('task=atari/pong', ATARI), ('task=gym/HalfCheetah-v5', CONTROL), ('task=dmc/cartpole_swingup obs=state', CONTROL),
    ('task=gym/CartPole-v1', CLASSIC)], ids=str)
def test_presets_are_those_of_published_tables(task, expected):
    values = compose_args([*task.split(), 'Agent=PPO'])
    assert {key: values['agent'].get(key, values.get(key)) for key in expected} == expected
    assert values['learn_per_steps'] == values['num_envs'] * values['agent']['rollout_steps'] and values['seed_steps'] == 0


def test_procgens_numbers_are_there_for_its_suite():
    numbers = row('procgen', 'Agents.PPO', 'procgen/coinrun')
    assert (numbers['num_envs'], numbers['lr'], numbers['discount'], numbers['Eyes'], numbers['hidden_dim']) == (64, 5e-4, 0.999, 'ImpalaCNN', 256)
    assert {'rollout_steps': 256, 'epochs': 3, 'minibatches': 8, 'clip': 0.2}.items() <= numbers['agent'].items()


# --- memory

def test_a_rollout_of_128_lanes_fits_into_half_a_gigabyte(tmp_path):
    """Pixels stay bytes, and are stored once: 128 steps of 128 lanes, final observations for all of them, stacks of four."""
    args = Args(compose_args(['task=atari/montezuma_revenge', 'Agent=RND', 'save=false']))
    agent = make(ObsSpec((1, 84, 84), frame_stack=4), num_envs=128, rollout_steps=128, intrinsic=True)
    sizes = RunReplay(args, tmp_path, 'montezuma_revenge', 'cpu').sizes(None, agent)
    needed = Replay.bytes_needed(ObsSpec((1, 84, 84), frame_stack=4), DISCRETE, num_envs=128, **sizes, extras=agent.extras)
    assert 2 * 128 * 128 * 84 * 84 < needed < 0.5e9


def test_rollouts_whose_every_step_ends_an_episode(tmp_path):
    run = values(tmp_path, 'gym/CartPole-v1', 'Agent=PPO', 'num_envs=2', 'train_steps=200', 'seed_steps=0', 'learn_per_steps=40', 'agent.rollout_steps=20',
                 'environment.max_steps=1', 'save=false', 'evaluate_per_steps=0')
    Run.run(run)
    told = rows(folder(run) / 'train.csv')[-1]
    assert told['episode'] == '200' and told['update'] == str(5 * run['agent']['epochs'] * run['agent']['minibatches'])


@pytest.mark.parametrize('overrides, message', [
    (('learn_per_steps=41',), 'learn_per_steps=41: PPO learns from each rollout once, agent.rollout_steps × num_envs = 40; set those instead'),
    (('learn_per_steps=80',), 'learn_per_steps=80: PPO learns'), (('updates_per_learn=2',), 'updates_per_learn=2: PPO learns from each rollout once'),
    (('learn_steps_after=1',), 'learn_steps_after=1: PPO learns from each rollout once')])
def test_what_would_learn_from_a_rollout_twice_or_from_half_of_it_is_refused(tmp_path, overrides, message):
    given = [one for one in ('learn_per_steps=40',) if one.partition('=')[0] not in overrides[0]]
    run = values(tmp_path, 'gym/CartPole-v1', 'Agent=PPO', 'num_envs=2', 'seed_steps=0', 'agent.rollout_steps=20', *given, *overrides)
    with pytest.raises(ValueError, match=message):
        Run.run(run)
    assert not folder(run).exists()


def test_every_rollout_teaches_the_last_one_too(tmp_path):
    run = values(tmp_path, 'gym/CartPole-v1', 'Agent=PPO', 'num_envs=2', 'train_steps=120', 'seed_steps=0', 'learn_per_steps=40', 'agent.rollout_steps=20',
                 'log_per_steps=40', 'evaluate_per_steps=0', 'lr=0.03')
    Run.run(run)
    assert [float(row['lr']) for row in rows(folder(run) / 'train.csv')] == pytest.approx([0.03, 0.02, 0.01])


def test_observations_that_are_no_numbers_end_the_run_in_one_line():
    agent = make()
    with pytest.raises(NonFinite, match='^the value of what is seen is nan'):
        agent.act(look_at(torch.full((3, 3), math.nan)))


class MovingFeatures(torch.nn.Module):
    """Eyes with a batch norm."""

    def __init__(self, input_shape):
        super().__init__()
        self.layers, self.output_shape = torch.nn.Sequential(torch.nn.Linear(input_shape[0], 6), torch.nn.BatchNorm1d(6)), (6,)

    def forward(self, x):
        return self.layers(x)


def test_what_a_rollout_is_judged_by_is_what_acting_saw():
    """Eyes with a batch norm: values and features of a rollout move no moments, and are those of single observations."""
    agent = make(recipes={'encoder': {'eyes': {'_target_': 'tests.Agents.test_ppo.MovingFeatures'}}}, encoder='mlp', lr=0.0, intrinsic=True)
    agent.reward_exploration({'rnd': {'_target_': 'Blocks.Exploration.RND', 'input': 'encoder'}}, VECTOR, DISCRETE, 3, lr=0.0, batch_size=8)
    agent.mode(training=False)
    replay, judged, seen = rolled(agent, VECTOR, DISCRETE), agent.judged, agent.seen
    told = {}
    agent.judged = lambda *given: told.update(target=judged(*given)[1], moments=agent.encoder.eyes.layers[1].running_mean.clone()) or judged(*given)
    agent.seen = lambda *given: told.update(seen=seen(*given)) or seen(*given)
    agent.improve(replay)
    assert not told['moments'].any() and agent.encoder.eyes.layers[1].running_mean.any(), 'learning alone moves them'
    agent = make(recipes={'encoder': {'eyes': {'_target_': 'tests.Agents.test_ppo.MovingFeatures'}}}, encoder='mlp', lr=0.0, intrinsic=True).eval()
    rollout = replay.latest(10)
    with torch.no_grad():
        torch.testing.assert_close(told['seen'].now, agent.encoder(rollout.obs.flatten(0, 1)))


# --- acting

def test_continuous_actions_stay_inside_and_are_learned_as_they_were_drawn():
    agent = make(VECTOR, BOX, log_std=1.0)
    action, extras, _ = agent.act(look(200))
    assert action.abs().max() == 1 and extras['drawn'].abs().max() > 1 and torch.equal(action, extras['drawn'].clamp(-1, 1))
    policy, _ = agent.judge(look(200).obs)
    torch.testing.assert_close(policy.log_prob(extras['drawn']), extras['log_prob'])


@pytest.mark.parametrize('action', [DISCRETE, BOX], ids=['discrete', 'continuous'])
def test_evaluation_is_greedy_or_samples_from_a_stream_of_its_own(action):
    for eval_greedy in (True, False):
        agent = make(VECTOR, action, eval_greedy=eval_greedy)
        acting = agent.acting.get_state()
        chosen, extras, _ = agent.act(look(50), greedy=True)
        again, _, _ = agent.act(look(50), greedy=True)
        assert torch.equal(agent.acting.get_state(), acting) and extras == {}
        assert torch.equal(chosen, again) == eval_greedy


@pytest.mark.parametrize('action', [DISCRETE, BOX], ids=['discrete', 'continuous'])
def test_labels_are_the_likeliest_however_games_are_played(action):
    agent = make(VECTOR, action, eval_greedy=False)
    told, obs = agent.predict(look(50).obs, 4), look(50).obs
    greedy, _, _ = make(VECTOR, action, eval_greedy=True).act(look(50), greedy=True)
    assert torch.equal(told, agent.predict(obs, 4)) and torch.equal(told.argmax(1) if action.discrete else told, greedy)


@pytest.mark.parametrize('options, message', [
    ({'epochs': 0}, 'agent.epochs=0: expected 1 or more'), ({'minibatches': 31}, 'agent.minibatches=31: expected no more than num_envs × '),
    ({'minibatches': 16}, 'agent.minibatches=16: expected at most 15: advantages are normalised over two transitions or more'),
    ({'gae_lambda': 1.5}, 'agent.gae_lambda=1.5: expected a number from 0 to 1'), ({'clip': -0.1}, 'agent.clip=-0.1'),
    ({'value_clip': 0.0}, 'agent.value_clip=0.0: expected more than 0, or null'), ({'anneal': 'linear(1.0,-1.0,10)'}, 'agent.anneal=')], ids=str)
def test_a_wrong_value_is_one_line(options, message):
    with pytest.raises(ValueError) as error:
        make(**options)
    assert message in str(error.value) and '\n' not in str(error.value)
