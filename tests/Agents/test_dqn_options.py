"""Options of DQN: every one beside every other, those that reach parts, and wrong values."""
import itertools

import pytest
import torch
from torch import nn

from Agents.Agent import can_compile
from Blocks.Architectures import Dueling
from Blocks.Architectures.Linear import Linear
from tests.Agents.small import BOX, DISCRETE, IMAGE, VECTOR, batch, filled_replay, look, parameters, same
from tests.Agents.small import make_dqn as make

OPTIONS = ('image', 'continuous', 'softmax', 'not double', 'dueling', 'two heads', 'layer_norm', 'nstep 3', 'ema', 'bf16', 'hard copies')
ROW = [1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0]  # Plackett and Burman 1946: twelve cases in which any two options meet in all four combinations
CASES = [[ROW[(j - i) % 11] for j in range(11)] for i in range(11)] + [[0] * 11]


def test_the_cases_are_pairwise():
    for a, b in itertools.combinations(range(11), 2):
        assert {(case[a], case[b]) for case in CASES} == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize('case', CASES, ids=lambda case: ', '.join(name for name, chosen in zip(OPTIONS, case) if chosen) or 'none')
def test_options_go_together(case):
    on = dict(zip(OPTIONS, case))
    obs, action = IMAGE if on['image'] else VECTOR, BOX if on['continuous'] else DISCRETE
    options = {'exploration': 'softmax' if on['softmax'] else 'epsilon', 'double': not on['not double'],
               'dueling': bool(on['dueling'] and not on['continuous']), 'num_critics': 1 + on['two heads'],
               'layer_norm': bool(on['layer_norm']), 'nstep': 3 if on['nstep 3'] else 1, 'ema': bool(on['ema']),
               'precision': 'bf16' if on['bf16'] else 'fp32', 'target_tau': 1 if on['hard copies'] else 0.05, 'target_per_updates': 1 + on['hard copies'],
               'batch_size': 8, 'trunk_dim': 6, 'num_actions': 1 + 2 * on['softmax'], 'grad_clip': 1.0 if on['two heads'] else None,
               'lr_decay_steps': 20 * on['ema'], 'huber': bool(on['dueling'])}
    if on['image'] and on['nstep 3']:
        options['recipes'] = {'aug': {'_target_': 'RandomShift', 'pad': 2}}
    agent, replay = make(obs, action, **options), filled_replay(obs, action)
    learners = [agent.critic, *([agent.actor] if on['continuous'] else []), *([agent.encoder] if on['image'] else [])]
    before = [parameters(block) for block in learners]
    for agent.step in range(4):
        metrics = agent.learn(replay)
        assert all(value.shape == () and torch.isfinite(value) and not value.requires_grad for value in metrics.values())
    assert set(metrics) == {'critic_loss', 'q_mean', 'target_q'} | ({'actor_loss'} if on['continuous'] else set())
    assert not any(same(old, parameters(block)) for old, block in zip(before, learners))
    assert all(p.dtype == torch.float32 for p in agent.parameters()), 'weights stay float32'
    for greedy in (False, True):
        chosen, extras, _ = agent.act(look(5, obs), greedy=greedy)
        assert chosen.shape == ((5, 2) if on['continuous'] else (5,)) and chosen.dtype == action.dtype and extras == {}
        assert chosen.abs().max() <= 1 if on['continuous'] else 0 <= chosen.min() and chosen.max() < 4
    twin = make(obs, action, seed=1, **options)
    twin.load_state(agent.state())
    assert same(list(twin.state_dict().values()), list(agent.state_dict().values()))


def test_options_reach_the_parts_they_are_for():
    plain, agent = make(IMAGE), make(IMAGE, dueling=True, layer_norm=True, hidden_dim=9, depth=2, num_critics=2)
    assert all(isinstance(head, Dueling) for head in agent.critic.heads) and len(agent.critic.heads) == 2
    assert not any(isinstance(head, Dueling) for head in plain.critic.heads) and len(plain.critic.heads) == 1
    assert [type(layer) for layer in agent.critic.heads[0].value.layers] == 2 * [Linear, nn.LayerNorm, nn.ReLU] + [Linear]
    assert agent.critic.heads[0].value.layers[0].out_features == 9
    for one, norms in ((plain, 0), (agent, 3)):
        assert sum(isinstance(layer, nn.GroupNorm) for layer in one.encoder.modules()) == norms
    box = make(IMAGE, BOX, layer_norm=True, trunk_dim=7, num_critics=2)
    assert box.critic.trunk.output_shape == box.actor.trunk.output_shape == (7,)
    assert any(isinstance(layer, nn.LayerNorm) for layer in box.actor.pi_head.modules())


def test_learning_asks_the_replay_for_its_batch_size_and_nstep():
    agent, asked = make(batch_size=5, nstep=3), []

    class Spy:
        def sample(self, *arguments, **options):
            asked.append((arguments, options))
            return batch(5)

    agent.learn(Spy())
    assert asked in ([((5, 3), {})], [((5,), {'nstep': 3})], [((5, 3, 0), {})])


@pytest.mark.parametrize('obs, action', [(VECTOR, DISCRETE), (IMAGE, DISCRETE), (VECTOR, BOX), (IMAGE, BOX)])
def test_bf16_stays_close_to_fp32(obs, action):
    exact, half = make(obs, action, lr=1e-3), make(obs, action, lr=1e-3, precision='bf16')
    for i in range(10):
        expected, metrics = exact.update(batch(32, obs, action, seed=i)), half.update(batch(32, obs, action, seed=i))
        for name, value in expected.items():
            assert metrics[name].dtype == torch.float32 and metrics[name].item() == pytest.approx(value.item(), rel=0.03, abs=0.03)
    distance = sum((a - b).norm() for a, b in zip(parameters(exact), parameters(half)))
    assert 0 < distance < 0.05 * sum(p.norm() for p in parameters(exact)), 'close, and not the same'


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason='needs a C++ compiler and the headers of Python')
@pytest.mark.parametrize('obs, action', [(IMAGE, DISCRETE), (VECTOR, BOX)])
def test_compiled_updates_equal_eager_ones(obs, action):
    eager, compiled = make(obs, action, num_critics=2), make(obs, action, num_critics=2, compile=True)
    for i in range(20):
        expected, metrics = eager.update(batch(16, obs, action, seed=i)), compiled.update(batch(16, obs, action, seed=i))
        for name, value in expected.items():
            assert metrics[name].item() == pytest.approx(value.item(), rel=1e-3, abs=1e-4), name
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(parameters(eager), parameters(compiled)))


def test_compiling_without_a_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setenv('CXX', 'a-compiler-that-is-not-there')
    with pytest.raises(ValueError, match=r'^compile=true on a CPU needs a C\+\+ compiler and the headers of Python: apt install g\+\+ python3-dev$'):
        make(compile=True)
    make(compile=False)


# --- wrong values

@pytest.mark.parametrize('options, message', [
    ({'exploration': 'boltzmann'}, 'agent.exploration=boltzmann: expected epsilon or softmax'),
    ({'precision': 'fp16'}, 'precision=fp16: expected fp32, bf16 or auto'),
    ({'num_critics': 0}, 'agent.num_critics=0: expected 1 or more'),
    ({'num_actions': 0}, 'agent.num_actions=0: expected 1 or more'),
    ({'target_per_updates': 0}, 'agent.target_per_updates=0: expected 1 or more'),
    ({'target_tau': 0}, 'agent.target_tau=0: expected more than 0, at most 1'),
    ({'target_tau': 1.5}, 'agent.target_tau=1.5: '),
    ({'eval_epsilon': -0.1}, 'agent.eval_epsilon=-0.1: expected a number from 0 to 1'),
    ({'epsilon': 'linear(1,0)'}, r'agent.epsilon=linear\(1,0\): expected a number, linear\(a,b,n\)'),
    ({'epsilon': 1.5}, 'agent.epsilon=1.5: '),
    ({'epsilon': 'linear(1,-0.1,100)'}, 'agent.epsilon='),
    ({'temperature': 0}, 'agent.temperature=0: expected more than 0'),
    ({'stddev_schedule': 'fast'}, 'agent.stddev_schedule=fast: '),
    ({'stddev_schedule': -1}, 'agent.stddev_schedule=-1: '),
    ({'stddev_clip': -0.3}, 'agent.stddev_clip=-0.3: '),
    ({'recipes': {'encoder': {'eyes': {'_target_': 'NatureCNN'}}}}, r'NatureCNN sees images \(C, H, W\), not \(3,\)'),
    ({'recipes': {'aug': {'_target_': 'RandomShift'}}}, r'Aug=RandomShift sees images \(C, H, W\), not \(3,\)'),
    ({'recipes': {'critic': {'q_head': {'_target_': 'MLP', 'widht': 3}}}}, 'recipes.critic.q_head.widht: MLP has no such argument'),
    ({'recipes': {'critic': {'q_head': {'_target_': 'MPL'}}}}, 'recipes.critic.q_head=MPL: no such name; nearest: MLP')])
def test_a_wrong_value_is_one_line(options, message):
    with pytest.raises(ValueError, match=f'^{message}') as error:
        make(**options)
    assert '\n' not in str(error.value)
