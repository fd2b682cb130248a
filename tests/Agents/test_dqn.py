"""DQN: acting, one update against a float64 re-implementation, targets, averages, exact restoring."""
import copy
import math

import pytest
import torch

import Checkpoint
from Agents.Random import Random
from Environment import Step
from tests.Agents.small import BOX, DISCRETE, IMAGE, TINY_EYES, VECTOR, batch, look, observations, parameters, same
from tests.Agents.small import make_dqn as make
from Utils import NonFinite

# --- acting

@pytest.mark.parametrize('obs', [VECTOR, IMAGE], ids=['vector', 'image'])
def test_the_greedy_action_is_the_argmax_of_the_ensembles_mean(obs):
    agent, step = make(obs, num_critics=3, seed=1), look(200, obs)
    for p in agent.encoder.parameters():
        p.data.mul_(5)  # so that images of noise differ
    q = agent.critic(agent.encoder(step.obs)).double()
    action, extras, _ = agent.act(step, greedy=True)
    assert torch.equal(action, q.mean(0).argmax(-1)) and action.dtype == torch.int64 and extras == {}
    assert len(action.unique()) > 1 and (q.argmax(-1) != action).any(), 'the heads disagree with their mean somewhere'
    agent.epsilon = lambda step: 0.0
    assert torch.equal(agent.act(step)[0], action), 'without ε acting is greedy'


def test_acting_sees_the_image_without_augmentation():
    agent, step = make(IMAGE, BOX, recipes={'aug': {'_target_': 'ShiftIntensity'}}, stddev_schedule=0.0), look(5, IMAGE)
    mean = agent.actor(agent.encoder(step.obs), 0.0).mean
    assert torch.equal(agent.act(step, greedy=True)[0], mean) and torch.allclose(agent.act(step)[0], mean, atol=1e-5)


def test_greedy_continuous_actions_are_the_mean():
    agent, step = make(action=BOX, num_actions=5), look(50)
    action, _, _ = agent.act(step, greedy=True)
    assert torch.equal(action, torch.tanh(agent.actor.pi_head(step.obs))) and action.shape == (50, 2) and action.dtype == torch.float32


@pytest.mark.parametrize('agent', [make, lambda **settings: Random(action_spec=settings.pop('action', DISCRETE), seed=0)], ids=['DQN', 'Random'])
def test_actions_are_uniform_before_explore_steps(agent):
    n = 12_000
    agents = agent(explore_steps=100), agent(action=BOX, explore_steps=100)
    for one in agents:
        one.step = 99
    action = agents[0].act(look(n))[0]
    counts = torch.bincount(action, minlength=4).double()
    assert action.dtype == torch.int64 and ((counts - n / 4) ** 2 / (n / 4)).sum() < 16.3  # chi-square, 3 degrees of freedom, 99.9 %
    action = agents[1].act(look(n))[0]
    assert action.shape == (n, 2) and action.dtype == torch.float32 and action.min() >= -1 and action.max() <= 1
    counts = torch.histc(action, 20, -1, 1).double()
    assert ((counts - n / 10) ** 2 / (n / 10)).sum() < 43.8  # 19 degrees of freedom


def test_the_policy_acts_from_explore_steps_on():
    agent, step = make(explore_steps=100, epsilon=0.0), look(300)
    greedy = agent.act(step, greedy=True)[0]
    agent.step = 99
    assert not torch.equal(agent.act(step)[0], greedy)
    agent.step = 100
    assert torch.equal(agent.act(step)[0], greedy)


def test_epsilon_follows_its_schedule_in_agent_steps():
    agent, n = make(epsilon='linear(1.0,0.2,1000)'), 20_000
    greedy = agent.act(look(n), greedy=True)[0]
    for step, epsilon in ((0, 1.0), (500, 0.6), (1000, 0.2), (5000, 0.2)):
        agent.step = step
        assert (agent.act(look(n))[0] != greedy).double().mean().item() == pytest.approx(epsilon * 3 / 4, abs=0.015)


def test_softmax_exploration_follows_q_over_the_temperature():
    agent, n = make(exploration='softmax', temperature='linear(1.0,0.05,100)', num_critics=2), 20_000
    obs = observations(1).expand(n, -1)
    q = agent.critic(agent.encoder(obs[:1])).mean(0)[0].double()
    for step, temperature in ((0, 1.0), (100, 0.05)):
        agent.step = step
        weights = [math.exp(value / temperature) for value in q.tolist()]
        expected = torch.tensor([w / sum(weights) for w in weights]).double() * n
        counts = torch.bincount(agent.act(Step(obs, None, None, None))[0], minlength=4).double()
        assert ((counts - expected) ** 2 / expected).sum() < 16.3


def test_eval_epsilon_is_the_evaluations_own():
    agent, n = make(eval_epsilon=0.4), 20_000
    mean = agent.critic(agent.encoder(look(n).obs)).mean(0).argmax(-1)
    assert (agent.act(look(n), greedy=True)[0] != mean).double().mean().item() == pytest.approx(0.3, abs=0.015)


@pytest.mark.parametrize('options', [{}, {'eval_epsilon': 0.5}, {'exploration': 'softmax'}, {'action': BOX}, {'action': BOX, 'num_actions': 3},
                                     {'obs': IMAGE, 'recipes': {'aug': {'_target_': 'ShiftIntensity'}}}])
def test_evaluation_draws_nothing_from_the_agents_streams(options):
    agent = make(explore_steps=10, **options)
    step = look(8, options.get('obs', VECTOR))
    for agent.step in (0, 10):
        before = agent.acting.get_state(), agent.learning.get_state(), torch.get_rng_state()
        agent.act(step, greedy=True)
        assert same(before, (agent.acting.get_state(), agent.learning.get_state(), torch.get_rng_state()))
        agent.act(step)
        assert not torch.equal(before[0], agent.acting.get_state()) and torch.equal(before[1], agent.learning.get_state())
        assert torch.equal(before[2], torch.get_rng_state())


def test_acting_noise_follows_the_schedule_without_a_clip_inside_the_box():
    agent, n = make(action=BOX, stddev_schedule='linear(1.0,0.1,100)'), 20_000
    mean, noise = agent.act(look(n), greedy=True)[0], {}
    calm = mean.abs().amax(-1) < 0.5  # far from the bounds
    for agent.step in (0, 100):
        action = agent.act(look(n))[0]
        assert action.abs().max() <= torch.tensor(1 - 1e-6)
        noise[agent.step] = (action - mean)[calm]
    assert noise[0].abs().max() > 0.5, 'stddev_clip is for losses'
    assert noise[100].std().item() == pytest.approx(0.1, rel=0.03)


def test_continuous_candidates_are_ranked_by_the_critic():
    agent, step = make(action=BOX, num_actions=20, temperature=1e-4, stddev_schedule=0.5), look(300)
    action = agent.act(step)[0]
    random = make(action=BOX, num_actions=20, stddev_schedule=0.5).acting  # the same stream from its start
    mean = agent.actor(step.obs, 0.5).mean
    candidates = (mean + 0.5 * torch.randn((20, 300, 2), generator=random)).clamp(-1 + 1e-6, 1 - 1e-6)
    q = torch.stack([agent.critic(step.obs, candidate)[0] for candidate in candidates])
    best = candidates[q.argmax(0), torch.arange(300)]
    assert (action - best).abs().amax(-1).lt(1e-5).double().mean() > 0.9, 'nearly cold: the best of the candidates'
    agent.temperature = lambda step: 1e4
    q = agent.critic(step.obs, agent.act(step)[0])[0]
    assert q.mean() < agent.critic(step.obs, best)[0].mean() - 0.01, 'hot: any of them'


# --- one update, in float64, from the paper

class Reference:
    """Double DQN on two-layer heads with AdamW, written out; numpy-like torch in float64, no code of the library."""

    def __init__(self, agent, lr, weight_decay, eps, tau):
        self.online = [[p.detach().double().clone() for p in head.parameters()] for head in agent.critic.heads]
        self.target = copy.deepcopy(self.online)
        self.moments = [[(torch.zeros_like(p), torch.zeros_like(p)) for p in head] for head in self.online]
        self.lr, self.weight_decay, self.eps, self.tau, self.updates = lr, weight_decay, eps, tau, 0

    @staticmethod
    def q(heads, x):
        return [torch.relu(x @ w1.T + b1) @ w2.T + b2 for w1, b1, w2, b2 in heads]

    def update(self, b, double, huber):
        obs, next_obs, reward, discount, weight = (t.double() for t in (b.obs, b.next_obs, b.reward, b.discount, b.weight))
        y = []
        online_next, target_next = self.q(self.online, next_obs), self.q(self.target, next_obs)
        for i in range(len(reward)):
            choose = online_next if double else target_next
            values = [sum(float(q[i, a]) for q in choose) / len(choose) for a in range(4)]
            best = values.index(max(values))
            y.append(float(reward[i]) + float(discount[i]) * min(float(q[i, best]) for q in target_next))
        q_sa, loss, self.updates = [], 0.0, self.updates + 1
        for head, moments, q in zip(self.online, self.moments, self.q(self.online, obs)):
            w1, b1, w2, b2 = head
            pre = obs @ w1.T + b1
            hidden, n = pre.clamp(min=0), len(y)
            gradients = [torch.zeros_like(p) for p in head]
            for i, a in enumerate(b.action.tolist()):
                error, w = float(q[i, a]) - y[i], float(weight[i])
                q_sa.append(float(q[i, a]))
                if huber:
                    loss += w * (0.5 * error ** 2 if abs(error) < 1 else abs(error) - 0.5) / n
                    slope = max(-1.0, min(1.0, error)) * w / n
                else:
                    loss += w * error ** 2 / n
                    slope = 2 * error * w / n
                gradients[2][a] += slope * hidden[i]
                gradients[3][a] += slope
                back = slope * w2[a] * (pre[i] > 0)
                gradients[0] += torch.outer(back, obs[i])
                gradients[1] += back
            for p, g, (first, second) in zip(head, gradients, moments):
                first.mul_(0.9).add_(0.1 * g)
                second.mul_(0.999).add_(0.001 * g * g)
                p.mul_(1 - self.lr * self.weight_decay)
                p.sub_(self.lr * (first / (1 - 0.9 ** self.updates)) / ((second / (1 - 0.999 ** self.updates)).sqrt() + self.eps))
        for target, online in zip(self.target, self.online):
            for t, p in zip(target, online):
                t.mul_(1 - self.tau).add_(self.tau * p)
        return {'critic_loss': loss, 'target_q': sum(y) / len(y), 'q_mean': sum(q_sa) / len(q_sa)}


@pytest.mark.parametrize('double, huber, heads', [(True, True, 1), (True, True, 2), (False, True, 2), (True, False, 2), (False, False, 1)])
def test_updates_against_a_float64_reimplementation(double, huber, heads):
    options = {'lr': 0.02, 'weight_decay': 0.1, 'target_tau': 0.3}
    agent = make(num_critics=heads, double=double, huber=huber, adam_eps=1e-4, **options, seed=2)
    reference = Reference(agent, eps=1e-4, lr=0.02, weight_decay=0.1, tau=0.3)
    for i in range(5):
        metrics, expected = agent.update(batch(seed=i)), reference.update(batch(seed=i), double, huber)
        assert {name: metrics[name].item() for name in expected} == pytest.approx(expected, rel=2e-5, abs=2e-6)
        for mine, theirs in ((agent.critic, reference.online), (agent.target_critic, reference.target)):
            for head, other in zip(mine.heads, theirs, strict=True):
                assert all(torch.allclose(p.double(), q, rtol=1e-4, atol=2e-5) for p, q in zip(head.parameters(), other, strict=True))
    assert agent.update_count == 5


def test_a_continuous_update_against_the_formulas():
    agent = make(action=BOX, num_critics=2, stddev_schedule=1.0, stddev_clip=0.3, target_tau=0.3, depth=1, seed=3)
    for head in [*agent.critic.heads, agent.actor.pi_head]:
        head.layers[-1].weight.data.mul_(4)  # means near the bounds too
    before, b = copy.deepcopy({'actor': agent.actor, 'target': agent.target_critic, 'critic': agent.critic}), batch(64, action=BOX)
    random = torch.Generator()
    random.set_state(agent.learning.get_state())
    metrics = agent.update(b)

    def mlp(part, x):
        w1, b1, w2, b2 = (p.detach().double() for p in part.parameters())
        return torch.relu(x @ w1.T + b1) @ w2.T + b2

    def q(critic, obs, action):
        return [mlp(head, torch.cat([obs, action], 1))[:, 0] for head in critic.heads]

    def act(obs, noise):
        noise = noise.double()
        assert (noise.abs() > 0.3).any()
        return (torch.tanh(mlp(before['actor'].pi_head, obs)) + noise.clamp(-0.3, 0.3)).clamp(-1 + 1e-6, 1 - 1e-6)

    obs, next_obs = b.obs.double(), b.next_obs.double()
    target_q = torch.minimum(*q(before['target'], next_obs, act(next_obs, torch.randn(64, 2, generator=random))))
    y = b.reward.double() + b.discount.double() * target_q
    critic_loss = sum((b.weight.double() * (head - y) ** 2).mean() for head in q(before['critic'], obs, b.action.double()))
    action = act(obs, torch.randn(64, 2, generator=random))
    actor_loss = -torch.minimum(*q(agent.critic, obs, action)).mean()  # the critic that has just been updated
    assert (action.abs() > 0.999).any(), 'the clamp was active somewhere'
    assert metrics['target_q'].item() == pytest.approx(y.mean().item(), rel=1e-5)
    assert metrics['critic_loss'].item() == pytest.approx(critic_loss.item(), rel=1e-5)
    assert metrics['actor_loss'].item() == pytest.approx(actor_loss.item(), rel=1e-5)
    assert abs(-torch.minimum(*q(before['critic'], obs, action)).mean() - actor_loss) > 1e-3, 'which differs from the one before'


@pytest.mark.parametrize('action', [DISCRETE, BOX], ids=['discrete', 'continuous'])
def test_targets_of_images_come_from_the_target_encoder(action):
    agent, b = make(IMAGE, action, num_critics=2, target_tau=0.3, stddev_schedule=0.0), batch(16, IMAGE, action)
    for i in range(3):
        agent.update(batch(16, IMAGE, action, seed=i + 1))  # the two encoders are apart now
    if action.discrete:
        pick = agent.critic(agent.encoder(b.next_obs)).mean(0).argmax(-1)
        q = agent.target_critic(agent.target_encoder(b.next_obs))[:, torch.arange(16), pick]
    else:
        q = agent.target_critic(agent.target_encoder(b.next_obs), agent.actor(agent.encoder(b.next_obs), 0.0).mean)
    y = (b.reward + b.discount * q.min(0).values).mean().item()
    assert agent.update(b)['target_q'].item() == pytest.approx(y, rel=1e-5)


def test_obs_and_next_obs_are_shifted_apart():
    agent, b = make(IMAGE, recipes={'aug': {'_target_': 'RandomShift'}}), batch(32, IMAGE)
    b.next_obs = b.obs
    seen, loss = [], agent.critic_loss

    def spy(*arguments):
        seen.append(arguments)
        return loss(*arguments)

    agent.critic_loss = spy
    agent.update(b)
    obs, *_, next_obs, _ = seen[0]
    assert obs.dtype == torch.uint8 and not torch.equal(obs, b.obs)
    assert (obs == next_obs).flatten(1).all(1).sum() < 5


# --- what moves, and what must not

@pytest.mark.parametrize('obs, action', [(VECTOR, DISCRETE), (IMAGE, DISCRETE), (VECTOR, BOX), (IMAGE, BOX)])
def test_the_target_network_moves_by_tau_exactly(obs, action):
    agent = make(obs, action, target_tau=0.01)
    for i in range(3):
        before = [parameters(agent.target_encoder), parameters(agent.target_critic)]
        agent.update(batch(8, obs, action, seed=i))
        for old, target, online in zip(before, (agent.target_encoder, agent.target_critic), (agent.encoder, agent.critic)):
            for o, t, p in zip(old, target.parameters(), online.parameters(), strict=True):
                assert torch.allclose(t.double(), 0.99 * o.double() + 0.01 * p.detach().double(), rtol=0, atol=1e-7)
    assert not same(before[1], parameters(agent.target_critic))


def test_hard_copies_come_every_target_per_updates():
    agent = make(IMAGE, target_tau=1, target_per_updates=3)
    start, equal = parameters(agent.target_critic), []
    for i in range(7):
        agent.update(batch(4, IMAGE, seed=i))
        equal.append(same(parameters(agent.target_critic), parameters(agent.critic)) and same(parameters(agent.target_encoder), parameters(agent.encoder)))
        if i < 2:
            assert same(parameters(agent.target_critic), start)
    assert equal == [False, False, True, False, False, True, False]


@pytest.mark.parametrize('obs', [VECTOR, IMAGE], ids=['vector', 'image'])
def test_an_actor_update_leaves_encoder_and_critic_alone(obs):
    agent = make(obs, BOX, num_critics=2, weight_decay=0.1)
    agent.update(batch(8, obs, BOX))  # optimisers have momentum now
    parts = (agent.encoder, agent.critic, agent.target_encoder, agent.target_critic)
    before, actor = [parameters(part) for part in parts], parameters(agent.actor)
    agent.update_actor(agent.encoder(batch(8, obs, BOX).obs).detach(), torch.tensor(0.2))
    assert all(same(old, parameters(part)) for old, part in zip(before, parts))
    assert not same(actor, parameters(agent.actor)) and all(p.requires_grad for p in agent.critic.parameters())
    assert all(not p.requires_grad for part in parts[2:] for p in part.parameters())


def test_the_encoder_learns_from_the_critic_and_can_be_frozen():
    agent = make(IMAGE)
    before = parameters(agent.encoder)
    agent.update(batch(8, IMAGE))
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters(agent.encoder)))
    frozen = make(IMAGE, recipes={'encoder': {**TINY_EYES['encoder'], 'optim': {'lr': 0.0}}})
    encoder, critic = parameters(frozen.encoder), parameters(frozen.critic)
    frozen.update(batch(8, IMAGE))
    assert same(encoder, parameters(frozen.encoder)) and not same(critic, parameters(frozen.critic))


def test_the_target_gets_no_gradient():
    agent = make(IMAGE)
    agent.update(batch(8, IMAGE))
    assert all(p.grad is None for part in (agent.target_encoder, agent.target_critic) for p in part.parameters())


@pytest.mark.parametrize('action', [DISCRETE, BOX], ids=['discrete', 'continuous'])
def test_averages_exist_only_with_ema_and_then_they_act(action):
    plain, agent = make(IMAGE, action), make(IMAGE, action, ema=True, ema_decay=0.9)
    assert not [name for name in plain.state_dict() if 'ema' in name]
    head, ema_head = (agent.critic if action.discrete else agent.actor), agent.ema_head
    for i in range(3):
        before = [parameters(agent.ema_encoder), parameters(ema_head)]
        agent.update(batch(8, IMAGE, action, seed=i))
        plain.update(batch(8, IMAGE, action, seed=i))
        for old, average, online in zip(before, (agent.ema_encoder, ema_head), (agent.encoder, head)):
            for o, t, p in zip(old, average.parameters(), online.parameters(), strict=True):
                assert torch.allclose(t.double(), 0.9 * o.double() + 0.1 * p.detach().double(), rtol=0, atol=1e-6)
    assert same(parameters(plain.critic), parameters(agent.critic)), 'learning notices nothing'
    step = look(60, IMAGE)
    with torch.no_grad():
        for p in (*agent.encoder.parameters(), *head.parameters()):
            p.normal_()
    averaged = ema_head(agent.ema_encoder(step.obs), *[] if action.discrete else [0.1])
    expected = averaged.mean(0).argmax(-1) if action.discrete else averaged.mean
    assert torch.equal(agent.act(step, greedy=True)[0], expected)


def test_nan_stops_before_the_weights_move():
    agent, b = make(action=BOX), batch(8, action=BOX)
    agent.update(b)
    before = parameters(agent)
    b.reward[3] = math.nan
    with pytest.raises(NonFinite, match='critic_loss is nan'):
        agent.update(b)
    assert same(before, parameters(agent)) and agent.update_count == 1


def test_the_gradient_norm_is_clipped_over_encoder_and_critic():
    agent = make(IMAGE, grad_clip=1e-3, recipes={name: {**TINY_EYES.get(name, {}), 'optim': {'_target_': 'SGD', 'lr': 1.0}} for name in ('encoder', 'critic')})
    before = [*parameters(agent.encoder), *parameters(agent.critic)]
    agent.update(batch(8, IMAGE))
    moved = sum((a - b).double().square().sum() for a, b in zip(before, [*parameters(agent.encoder), *parameters(agent.critic)])).sqrt()
    assert moved.item() == pytest.approx(1e-3, rel=1e-2)


# --- saved and restored

@pytest.mark.parametrize('obs, action, options', [
    (VECTOR, DISCRETE, {'num_critics': 2, 'exploration': 'softmax', 'target_per_updates': 7, 'target_tau': 1}),
    (IMAGE, DISCRETE, {'recipes': {'aug': {'_target_': 'ShiftIntensity'}}, 'ema': True, 'lr_decay_steps': 30, 'grad_clip': 1.0}),
    (VECTOR, BOX, {'num_actions': 3, 'ema': True, 'recipes': {'actor': {'optim': {'_target_': 'SGD', 'momentum': 0.9}}}}),
    (IMAGE, BOX, {'recipes': {'aug': {'_target_': 'RandomShift'}}, 'num_critics': 2})], ids=['vector', 'image', 'vector box', 'image box'])
def test_a_restored_agent_goes_on_to_the_bit(tmp_path, obs, action, options):
    def live(agent, begin, end):
        trace = []
        for i in range(begin, end):
            agent.step = 100 * i
            trace += [agent.act(look(4, obs, seed=i))[0], *agent.update(batch(8, obs, action, seed=i)).values()]
        return trace

    agent = make(obs, action, explore_steps=300, **options)
    live(agent, 0, 6)
    Checkpoint.write(tmp_path / 'agent.pt', {'agent': agent.state()})
    expected = live(agent, 6, 26)

    twin = make(obs, action, seed=9, explore_steps=300, **options)
    twin.load_state(Checkpoint.read(tmp_path / 'agent.pt')['agent'])
    assert (twin.step, twin.update_count) == (500, 6)
    assert same(live(twin, 6, 26), expected)
    assert same(list(agent.state_dict().values()), list(twin.state_dict().values())) and twin.update_count == 26
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(agent.generators().values(), twin.generators().values()))


@pytest.mark.parametrize('saved, loading, message', [
    ({}, {'hidden_dim': 9}, r'the saved weights do not fit this agent: .*is \(8, 3\) there and \(9, 3\) here, and'),
    ({}, {'num_critics': 2}, r'the saved weights do not fit this agent: .*is missing there and \('),
    ({'ema': True}, {}, 'the saved weights do not fit this agent: .* there and missing here'),
    ({'lr_decay_steps': 5}, {}, 'the saved agent has schedulers of .*critic.*, this one of \\[\\]')])
def test_another_agents_state_is_refused(saved, loading, message):
    with pytest.raises(ValueError, match=message) as error:
        make(**loading).load_state(make(**saved).state())
    assert '\n' not in str(error.value)


def test_two_agents_of_one_seed_are_one():
    one, two, other = make(seed=4), make(seed=4), make(seed=5)
    for agent in (one, two, other):
        agent.actions = torch.stack([agent.act(look(20))[0] for _ in range(5)])
        for i in range(10):
            agent.update(batch(seed=i))
    assert torch.equal(one.actions, two.actions) and same(parameters(one), parameters(two))
    assert not torch.equal(one.actions, other.actions) and not same(parameters(one), parameters(other))
