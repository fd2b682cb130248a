"""SAC: the squashed Gaussian against torch's distributions, one update against a float64 re-implementation, who trains what, pixels."""
import contextlib
import copy
import itertools
import math
import sys

import pytest
import torch

import Checkpoint
from Agents.Agent import can_compile
from Agents.AuxiSAC import AuxiSAC
from Agents.CURL import CURL
from Agents.SAC import SAC
from Blocks.Actors import Categorical, TanhNormal
from Datasets.Specs import ActionSpec, ObsSpec
from tests.Agents.small import BOX, DISCRETE, VECTOR, batch, filled_replay, look, parameters, same

PIXELS = ObsSpec((3, 24, 24), frame_stack=2, stack_pad='repeat')
CROP = {'aug': {'_target_': 'RandomCrop', 'size': 20}}


def make(obs=VECTOR, action=BOX, recipes=None, seed=0, kind=SAC, **options):
    torch.manual_seed(seed)
    recipes = {'aug': {}, 'encoder': {}, 'critic': {}, 'actor': {}} | (CROP if obs.is_image else {}) | (recipes or {})
    options = {'hidden_dim': 8, 'explore_steps': 0, 'lr': 1e-2, 'trunk_dim': 5, 'encoder_hidden_dim': 6} | options
    return kind(obs_spec=obs, action_spec=action, recipes=recipes, seed=seed, **options)


# --- policies

def test_the_density_of_a_squashed_gaussian_is_torchs():
    random = torch.Generator().manual_seed(0)
    mean, log_std = torch.randn((500, 3), generator=random), torch.rand((500, 3), generator=random) * 3 - 2
    action, log_prob = TanhNormal(mean, log_std).sample(torch.randn((500, 3), generator=random))
    inside = (action.abs() < 0.999).all(1)  # where float32 still knows the action well enough to be turned back
    assert inside.sum() > 300
    squashed = torch.distributions.TransformedDistribution(torch.distributions.Normal(mean[inside].double(), log_std[inside].double().exp()),
                                                           torch.distributions.TanhTransform())
    torch.testing.assert_close(log_prob[inside].double(), squashed.log_prob(action[inside].double()).sum(-1), rtol=1e-3, atol=1e-3)


def test_the_density_by_hand():
    """mean 0, std 1, noise 0.5, one dimension: −0.5²/2 − log √2π − log(1 − tanh² 0.5) = −0.125 − 0.918939 + 0.240230."""
    action, log_prob = TanhNormal(torch.zeros(1, 1), torch.zeros(1, 1)).sample(torch.full((1, 1), 0.5))
    assert action.item() == pytest.approx(0.4621172, abs=1e-6) and log_prob.item() == pytest.approx(-0.8037088, abs=1e-5)


def test_the_density_is_finite_where_tanh_is_saturated():
    mean = torch.tensor([[40.0], [-40.0]], requires_grad=True)
    action, log_prob = TanhNormal(mean, torch.zeros(2, 1)).sample(torch.zeros(2, 1))
    log_prob.sum().backward()
    assert torch.equal(action, torch.tensor([[1.0], [-1.0]])) and torch.isfinite(log_prob).all() and torch.isfinite(mean.grad).all()
    assert log_prob[0].item() == pytest.approx(-0.9189385 + 80 - 2 * math.log(2), abs=1e-4)  # 1 − tanh² x → 4 exp(−2x)


def test_log_std_stays_between_its_bounds():
    agent = make(log_std_min=-4, log_std_max=1)
    agent.actor.pi_head.layers[-1].bias.data[2:] = torch.tensor([100.0, -100.0])
    policy = agent.actor(torch.zeros(1, 3))
    assert policy.log_std.tolist() == [[1.0, -4.0]]
    agent.actor.pi_head.layers[-1].bias.data[2:] = 0
    agent.actor.pi_head.layers[-1].weight.data.zero_()
    assert agent.actor(torch.zeros(1, 3)).log_std.tolist() == [[-1.5, -1.5]]


def test_a_categorical_policy():
    policy = Categorical(torch.tensor([[0.0, math.log(3.0)]]).repeat(10_000, 1))
    assert policy.probs[0].tolist() == pytest.approx([0.25, 0.75]) and policy.best[0] == 1
    drawn = policy.sample(torch.Generator().manual_seed(0)).double().mean()
    assert drawn == pytest.approx(0.75, abs=0.02)


# --- one update, again in float64

def forward64(module, x):
    return copy.deepcopy(module).double()(x.double())


@pytest.mark.parametrize('discrete', [False, True])
@pytest.mark.parametrize('encoder', ['identity', 'ofe'])
def test_an_update_is_that_of_the_papers_equations(discrete, encoder):
    action = DISCRETE if discrete else BOX
    agent = make(action=action, encoder=encoder, critic_tau=0.3, encoder_tau=0.1, init_temperature=0.2, lr=0.0, temperature_lr=1e-3)
    for p in [*agent.target_critic.parameters(), *agent.target_encoder.parameters()]:
        p.data.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    data, alpha = batch(action=action), 0.2
    stream = torch.Generator()
    stream.set_state(agent.learning.get_state())
    noises = [torch.randn((16, *action.shape), generator=stream) for _ in range(2)]
    before = {name: copy.deepcopy(getattr(agent, name)).double() for name in ('encoder', 'critic', 'actor', 'target_critic', 'target_encoder')}
    metrics = agent.update(data)
    obs, next_obs, reward, discount = (x.double() for x in (data.obs, data.next_obs, data.reward, data.discount))

    def policy(seen, noise):
        out = before['actor'].pi_head(before['actor'].trunk(before['encoder'].eyes(seen)))
        if discrete:
            return torch.log_softmax(out, -1)
        mean, raw = out.chunk(2, -1)
        log_std = -10 + 6 * (torch.tanh(raw) + 1)
        x = mean + noise.double() * log_std.exp()
        log_prob = torch.distributions.Normal(mean, log_std.exp()).log_prob(x) - torch.log(1 - torch.tanh(x) ** 2)
        return torch.tanh(x), log_prob.sum(-1)

    def soft_value(critic, represented, seen, noise):
        if discrete:
            log_probs = policy(seen, noise)
            q = critic(represented).double().min(0).values
            return (log_probs.exp() * (q - alpha * log_probs)).sum(-1), (log_probs.exp() * log_probs).sum(-1)
        chosen, log_prob = policy(seen, noise)
        return critic(represented, chosen).double().min(0).values - alpha * log_prob, log_prob

    def represent(encoder, seen):
        return encoder.projection(encoder.pool(encoder.eyes(seen)))

    target = reward + discount * soft_value(before['target_critic'], represent(before['target_encoder'], next_obs), next_obs, noises[0])[0]
    q = before['critic'](represent(before['encoder'], obs), *(() if discrete else (data.action.double(),))).double()
    q = q.gather(-1, data.action.expand(2, -1)[..., None]).squeeze(-1) if discrete else q
    expected = (((q - target) ** 2) * data.weight.double()).mean(1).sum()
    assert metrics['critic_loss'].item() == pytest.approx(expected.item(), rel=1e-4)
    value, log_prob = soft_value(before['critic'], represent(before['encoder'], obs), obs, noises[1])
    assert metrics['actor_loss'].item() == pytest.approx(-value.mean().item(), rel=1e-4)
    assert metrics['entropy'].item() == pytest.approx(-log_prob.mean().item(), rel=1e-4)
    wanted = 0.98 * math.log(4) if discrete else -2.0
    # Adam's first step is one learning rate against the sign of d/d log α of −α (log π + target)
    sign = math.copysign(1, -log_prob.mean().item() - wanted)
    assert agent.temperature.log_alpha.item() == pytest.approx(math.log(0.2) - 1e-3 * sign, abs=1e-6)


def test_moving_averages_act():
    agent, step = make(ema=True, ema_decay=0.9), look(5)
    start = parameters(agent.actor)
    agent.update(batch(action=BOX))
    for old, average, online in zip(start, parameters(agent.ema_actor), parameters(agent.actor), strict=True):
        torch.testing.assert_close(average, old + 0.1 * (online - old), rtol=0, atol=1e-7)
    assert torch.equal(agent.act(step, greedy=True)[0], agent.ema_actor(agent.ema_encoder.features(step.obs)).best)
    assert not torch.equal(agent.act(step, greedy=True)[0], agent.actor(agent.encoder.features(step.obs)).best)


def test_the_temperature_falls_while_the_policy_is_more_random_than_it_should_be():
    for target, grows in ((-50.0, False), (50.0, True)):
        agent = make(target_entropy=target)
        start = agent.temperature().item()
        for seed in range(3):
            agent.update(batch(action=BOX, seed=seed))
        assert (agent.temperature().item() > start) == grows
    still = make(learn_temperature=False, init_temperature=0.37)
    still.update(batch(action=BOX))
    assert still.temperature().item() == pytest.approx(0.37)


def test_targets_move_by_their_own_shares_every_so_many_updates():
    agent = make(encoder='ofe', critic_tau=0.01, encoder_tau=0.05, target_per_updates=2, actor_per_updates=3)
    start = {name: parameters(getattr(agent, name)) for name in ('target_critic', 'target_encoder', 'actor')}
    agent.update(batch(action=BOX))
    for name, saved in start.items():
        assert same(parameters(getattr(agent, name)), saved), name
    agent.update(batch(action=BOX, seed=1))
    for name, tau in (('critic', 0.01), ('encoder', 0.05)):
        for old, target, online in zip(start[f'target_{name}'], parameters(getattr(agent, f'target_{name}')), parameters(getattr(agent, name)), strict=True):
            torch.testing.assert_close(target, old + tau * (online - old), rtol=0, atol=1e-7)
    assert same(parameters(agent.actor), start['actor'])
    agent.update(batch(action=BOX, seed=2))
    assert not same(parameters(agent.actor), start['actor'])


def test_the_order_of_an_update(monkeypatch):
    """Critic, actor, temperature, targets (2210.06041's code); auxiliary losses after them."""
    module, auxiliary = sys.modules['Agents.SAC'], sys.modules['Blocks.Auxiliary.Auxiliary']
    trace, step, follow = [], module.optimise, module.follow
    for where in (module, auxiliary):
        monkeypatch.setattr(where, 'optimise', lambda loss, *blocks, name, **rest: (trace.append(name), step(loss, *blocks, name=name, **rest)))
    monkeypatch.setattr(module, 'follow', lambda *pair: (trace.append('targets'), follow(*pair)))
    agent = make(encoder='ofe')
    agent.attach({'curl': {'_target_': 'Blocks.Auxiliary.CURL'}}, VECTOR, BOX, lr=1e-3, batch_size=8)
    agent.improve(filled_replay(VECTOR, BOX))
    assert trace == ['critic_loss', 'actor_loss', 'temperature_loss', 'targets', 'targets', 'curl_loss']


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason='no C++ compiler, or no headers of Python')
@pytest.mark.parametrize('obs, action', [(VECTOR, BOX), (VECTOR, DISCRETE)])
def test_compiled_updates_are_the_eager_ones(obs, action):
    eager, compiled = make(obs, action), make(obs, action, compile=True)
    for seed in range(3):
        one, two = (agent.update(batch(obs=obs, action=action, seed=seed)) for agent in (eager, compiled))
        for key in one:
            torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-5, msg=key)


# --- who trains what

def moved(agent, before):
    return {name for name, value in agent.named_parameters() if not torch.equal(value, before[name])}


def snapshot(agent):
    return {name: value.detach().clone() for name, value in agent.named_parameters()}


@pytest.mark.parametrize('obs, encoder', [(PIXELS, 'pixel'), (VECTOR, 'mlp'), (VECTOR, 'ofe')])
def test_the_critic_trains_all_of_the_encoder_and_the_actor_none_of_it(obs, encoder):
    """The released code leaves hidden layers for vectors at their random start; here the actor reads those that the critic trains."""
    agent = make(obs, encoder=encoder)
    before = snapshot(agent)
    agent.critic_loss_only = agent.actor_per_updates = 10  # no actor step yet
    agent.update(batch(obs=obs, action=BOX))
    names = moved(agent, before)
    encoder_names = {name for name in before if name.startswith('encoder.')}
    assert encoder_names and encoder_names <= names and not any(name.startswith(('actor.', 'temperature')) for name in names)
    frozen = snapshot(agent)
    metrics = agent.update_actor(agent.encoder.features(agent.aug.evaluate(batch(obs=obs).obs)), agent.aug.evaluate(batch(obs=obs).obs), agent.temperature())
    assert {name.split('.')[0] for name in moved(agent, frozen)} == {'actor', 'temperature'} and 'actor_loss' in metrics
    assert {name for name in before if name.startswith('actor.')} <= moved(agent, frozen), 'the projection of the actor, too'


def test_eyes_are_shared_and_projections_are_not():
    agent = make(PIXELS)
    shared = {id(p) for p in agent.encoder.eyes.parameters()}
    assert not shared & {id(p) for p in agent.actor.parameters()}, 'the actor has no convolutions of its own'
    assert tuple(agent.actor.trunk.layers[0].weight.shape) == tuple(agent.encoder.projection.layers[0].weight.shape)
    assert not torch.equal(agent.actor.trunk.layers[0].weight, agent.encoder.projection.layers[0].weight)


@pytest.mark.parametrize('trains', [False, True])
def test_the_actors_loss_reaches_the_eyes_only_if_asked(trains):
    agent = make(PIXELS, actor_trains_encoder=trains)
    before = snapshot(agent)
    data = agent.aug.evaluate(batch(obs=PIXELS).obs)
    agent.update_actor(agent.encoder.features(data), data, agent.temperature())
    assert any(name.startswith('encoder.eyes') for name in moved(agent, before)) == trains
    assert not any(name.startswith('critic') for name in moved(agent, before))


def test_a_detached_encoder_is_trained_behind_the_eyes():
    agent = make(PIXELS, detach_encoder=True)
    before = snapshot(agent)
    agent.update(batch(obs=PIXELS, action=BOX))
    names = moved(agent, before)
    assert not any(name.startswith('encoder.eyes') for name in names) and any(name.startswith('encoder.projection') for name in names)


def test_the_convolutions_begin_as_their_middle_tap():
    agent = make(PIXELS)
    for layer in agent.encoder.eyes.layers[::2]:
        weight = layer.weight.detach()
        outer = weight.clone()
        outer[:, :, 1, 1] = 0
        tap = weight[:, :, 1, 1]
        product = tap.T @ tap if tap.shape[0] >= tap.shape[1] else tap @ tap.T
        torch.testing.assert_close(product, 2 * torch.eye(len(product)), atol=1e-5, rtol=0)
        assert not outer.any() and not layer.bias.any()


def test_parts_with_an_initialisation_of_their_own_keep_it():
    agent = make(PIXELS, recipes={'encoder': {'eyes': {'_target_': 'tests.Agents.test_sac.Ones'}}})
    assert all((p == 1).all() for p in agent.encoder.eyes.parameters()), 'the eyes are the user\'s'
    weight = agent.encoder.projection.layers[0].weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(len(weight)), atol=1e-5, rtol=0)


class Ones(torch.nn.Module):
    """Eyes with weights that nobody would draw."""

    def __init__(self, input_shape):
        super().__init__()
        self.layers, self.output_shape = torch.nn.Conv2d(input_shape[0], 8, 3, 4), (8, (input_shape[1] + 1) // 4, (input_shape[2] + 1) // 4)
        for p in self.parameters():
            torch.nn.init.ones_(p)

    def forward(self, x):
        return self.layers(x)


def test_the_networks_from_pixels_are_the_published_ones():
    """84 → 41 → 39 → 37 → 35, 39,200 numbers, 50 of them kept; 1,990,518 parameters and 4,208,504 with the critic's heads."""
    obs = ObsSpec((3, 100, 100), frame_stack=3)
    agent = make_published(obs)
    count = {name: sum(p.numel() for p in getattr(agent, name).parameters()) for name in ('encoder', 'critic')}
    assert agent.encoder.feature_shape == (32, 35, 35) and agent.encoder.repr_shape == (50,)
    assert count['encoder'] == 1_990_518 and sum(count.values()) == 4_208_504


def make_published(obs):
    recipes = {'aug': {'_target_': 'RandomCrop'}, 'encoder': {}, 'critic': {}, 'actor': {}}
    return SAC(obs_spec=obs, action_spec=ActionSpec((6,)), recipes=recipes, hidden_dim=1024, encoder_layers=1, seed=0)


@pytest.mark.parametrize('layers, width', [(1, 57), (3, 137)])
def test_a_dense_encoder_keeps_all_it_has_seen(layers, width):
    obs = ObsSpec((17,), torch.float32, -math.inf, math.inf)
    encoder = make(obs, encoder='ofe', encoder_hidden_dim=40, encoder_layers=layers).encoder
    seen = torch.randn(5, 17)
    features = encoder.eyes(seen)
    assert encoder.feature_shape == encoder.repr_shape == (width,) and torch.equal(features[:, :17], seen)
    torch.testing.assert_close(features[:, 17:57], torch.relu(encoder.eyes.layers[0](seen)))
    assert tuple(encoder.projection.layers[0].weight.shape) == (width, width)


# --- acting

@pytest.mark.parametrize('obs', [VECTOR, PIXELS])
@pytest.mark.parametrize('action', [BOX, DISCRETE])
def test_acting(obs, action):
    agent, step = make(obs, action), look(200, obs)
    greedy = agent.act(step, greedy=True)[0]
    policy = agent.actor(agent.encoder.features(agent.aug.evaluate(step.obs)))
    assert torch.equal(greedy, policy.log_probs.argmax(-1) if action.discrete else torch.tanh(policy.mean))
    one, two = agent.act(step)[0], agent.act(step)[0]
    assert one.dtype == action.dtype and one.shape == (200, *action.shape) and not torch.equal(one, two)
    assert torch.equal(agent.act(step, greedy=True)[0], greedy), 'evaluation draws nothing'


def test_acting_and_learning_see_crops():
    agent, seen = make(PIXELS), []
    agent.encoder.eyes.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape))
    agent.act(look(3, PIXELS))
    agent.update(batch(obs=PIXELS, action=BOX))
    assert {tuple(shape[1:]) for shape in seen} == {(6, 20, 20)}


def test_observations_are_normalised_by_what_was_acted_on():
    agent = make(normalise_obs=True)
    wide = look(4000)
    wide.obs = wide.obs * torch.tensor([1.0, 100.0, 0.01]) + 5
    agent.act(wide)
    prepared = agent.encoder.prepare(wide.obs)
    torch.testing.assert_close(prepared.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(prepared.std(0), torch.ones(3), atol=1e-2, rtol=0)
    state = agent.encoder.normaliser.count.clone()
    agent.act(wide, greedy=True)
    agent.update(batch(action=BOX))
    assert torch.equal(agent.encoder.normaliser.count, state), 'neither evaluation nor learning counts'
    assert torch.equal(agent.target_encoder.normaliser.mean, agent.encoder.normaliser.mean)


# --- options beside one another, and coming back

OPTIONS = {'obs': [VECTOR, PIXELS], 'action': [BOX, DISCRETE], 'encoder': ['auto', 'other'], 'precision': ['fp32', 'bf16'], 'nstep': [1, 3],
           'num_critics': [1, 2, 3], 'detach_encoder': [False, True], 'actor_trains_encoder': [False, True], 'normalise_obs': [False, True],
           'learn_temperature': [True, False], 'ema': [False, True],
           'grad_clip': [None, 1.0], 'layer_norm': [False, True], 'depth': [0, 2], 'lr_decay_steps': [0, 10]}


def pairs():
    """Combinations in which every pair of values of two options occurs."""
    names, wanted, chosen = list(OPTIONS), set(), []
    for (a, one), (b, two) in itertools.combinations(OPTIONS.items(), 2):
        wanted |= {(a, i, b, j) for i in range(len(one)) for j in range(len(two))}
    random = torch.Generator().manual_seed(0)
    while wanted:
        tries = [{name: int(torch.randint(len(OPTIONS[name]), (), generator=random)) for name in names} for _ in range(60)]
        covered = [{(a, t[a], b, t[b]) for a, b in itertools.combinations(names, 2)} & wanted for t in tries]
        best = max(range(60), key=lambda k: len(covered[k]))
        wanted -= covered[best]
        if covered[best]:
            chosen.append({name: OPTIONS[name][tries[best][name]] for name in names})
    return chosen


@pytest.mark.parametrize('options', pairs(), ids=lambda options: ' '.join(f'{key}={value}' for key, value in options.items() if key not in ('obs', 'action')))
def test_every_option_works_beside_every_other(options):
    options = dict(options)
    if options['encoder'] == 'other':
        options['encoder'] = 'nature' if options['obs'].is_image else 'mlp'
    recipes = {'aug': {}} if options['encoder'] == 'nature' else {}
    obs = ObsSpec((1, 36, 36), frame_stack=2) if options['encoder'] == 'nature' else options['obs']
    if obs.is_image:
        with pytest.raises(ValueError, match='normalise_obs=true') if options['normalise_obs'] else contextlib.nullcontext():
            make(**options | {'obs': obs}, recipes=recipes)
        options['normalise_obs'] = False
    agent = make(**options | {'obs': obs}, recipes=recipes)
    replay = filled_replay(obs, options['action'])
    for _ in range(3):
        metrics = agent.improve(replay)
    assert all(torch.isfinite(value) for value in metrics.values()) and agent.update_count == 3
    agent.act(look(2, obs))


@pytest.mark.parametrize('obs', [VECTOR, PIXELS])
def test_it_goes_on_exactly_where_it_was_saved(obs, tmp_path):
    agent, replay = make(obs, encoder='auto' if obs.is_image else 'ofe', seed=3), filled_replay(obs, BOX)
    losses = {'a2': a2(), 'curl': {'_target_': 'Blocks.Auxiliary.CURL'}}
    agent.attach(losses, obs, BOX, lr=1e-3, batch_size=8)
    for _ in range(3):
        agent.improve(replay)
    Checkpoint.write(tmp_path / 'state.pt', {'agent': agent.state(), 'replay': replay.rng.bit_generator.state})
    state = Checkpoint.read(tmp_path / 'state.pt')
    other = make(obs, encoder='auto' if obs.is_image else 'ofe', seed=4)
    other.attach(losses, obs, BOX, lr=1e-3, batch_size=8)
    other.load_state(state['agent'])
    first = [agent.improve(replay) for _ in range(3)]
    replay.rng.bit_generator.state = state['replay']
    second = [other.improve(replay) for _ in range(3)]
    assert all(torch.equal(one[key], two[key]) for one, two in zip(first, second, strict=True) for key in one)
    assert same(parameters(agent), parameters(other)) and torch.equal(agent.act(look(3, obs))[0], other.act(look(3, obs))[0])


def a2(**options):
    return {'_target_': 'Blocks.Auxiliary.A2', 'horizon': 2, 'input_s': '10', 'input_a': '11', 'input_r': '01', 'input_s_': '0', 'output_s': '01',
            'output_a': '00', 'output_r': '00', 'output_s_': '1'} | options


@pytest.mark.parametrize('kind', [AuxiSAC, CURL])
def test_named_compositions_are_sac(kind):
    agent, plain = make(kind=kind), make()
    assert isinstance(agent, SAC) and same(parameters(agent), parameters(plain))


@pytest.mark.parametrize('options, key', [
    ({'critic_tau': 0}, 'agent.critic_tau=0'), ({'encoder_tau': 1.5}, 'agent.encoder_tau=1.5'), ({'num_critics': 0}, 'agent.num_critics=0'),
    ({'init_temperature': 0}, 'agent.init_temperature=0'), ({'log_std_min': 3}, 'agent.log_std_min=3'), ({'actor_per_updates': 0}, 'agent.actor_per_updates=0'),
    ({'temperature_lr': -1}, 'agent.temperature_lr=-1'), ({'init_temperature': math.inf}, 'agent.init_temperature=inf'),
    ({'target_entropy': math.inf}, 'agent.target_entropy=inf'),
    ({'encoder': 'pixel'}, 'encoder=pixel: expected auto or one of identity, mlp, ofe'), ({'temperature_beta': 1}, 'agent.temperature_beta=1')])
def test_wrong_numbers_are_named(options, key):
    with pytest.raises(ValueError) as error:
        make(**options)
    assert key in str(error.value)
