"""What every flag of the loop does, on runs of a second and less: learning, evaluation, averages, precision, what is written."""
import json
import time

import av
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import Judges
import Session as session_module
from Agents.Random import Random
from Environment import Step
from tests.conftest import equal, lines, timeless

# --- learning: how often

@pytest.mark.parametrize('steps, seed_steps, learn_per_steps, updates_per_learn, after, num_envs', [
    (60, 20, 4, 1, 0, 1), (61, 20, 4, 1, 3, 1), (59, 21, 2, 3, 0, 1), (60, 21, 2, 3, 5, 4), (62, 20, 3, 2, 1, 4), (61, 0, 1, 1, 0, 16), (30, 60, 1, 2, 2, 1),
    (60, 20, 7, 1, 0, 16), (60, 20, 0, 1, 9, 1), (60, 20, 0, 3, 9, 4), (0, 0, 1, 1, 5, 1)])
def test_number_of_updates(graft, steps, seed_steps, learn_per_steps, updates_per_learn, after, num_envs):
    left = graft.run(f'train_steps={steps}', f'seed_steps={seed_steps}', f'learn_per_steps={learn_per_steps}', f'updates_per_learn={updates_per_learn}',
                     f'learn_steps_after={after}', f'num_envs={num_envs}', 'log_per_steps=1', 'evaluate_per_steps=0')
    expected = 0
    if steps:
        expected = (max(0, steps - seed_steps) // learn_per_steps * updates_per_learn if learn_per_steps else 0) + after
    assert left.updates() == expected == int(left.rows('eval')[-1]['update'])
    for row in left.rows('train')[:-1]:  # on the way: what the step before asked for, as the learner works while the simulator does
        due = [max(0, int(row['step']) - lag - seed_steps) // learn_per_steps * updates_per_learn if learn_per_steps else 0 for lag in (num_envs, 0)]
        assert due[0] <= int(row['update']) <= due[1]


def test_actions_are_uniform_while_exploring_and_the_agents_own_after(graft):
    session = graft.session('task=gym/Acrobot-v1', 'explore_steps=300', 'agent.epsilon=0', 'agent.eval_epsilon=0', 'train_steps=400', 'learn_per_steps=0',
                            'num_envs=2')
    drawn, greedy = [], []
    for _ in range(200):
        seen = session.environment.observe()
        best, _, _ = session.agent.act(seen, greedy=True)
        session.advance()
        drawn.append(session.environment.observe().prev_action.clone())
        first = session.environment.observe().first  # the actions of an episode that ended are not shown
        greedy.append((best == drawn[-1]) | first)
    uniform = torch.cat(drawn[:150])
    share = torch.bincount(uniform, minlength=3) / len(uniform)
    assert (abs(share - 1 / 3) < 4 * (2 / 9 / 300) ** 0.5).all(), share
    assert not torch.cat(greedy[:150]).all() and torch.cat(greedy[150:]).all()


@pytest.mark.parametrize('log_per_steps', [10, 13])
def test_the_last_row_tells_of_the_updates_after_the_last_step(graft, log_per_steps):
    rows = graft.run('learn_steps_after=5', 'train_steps=40', 'seed_steps=40', f'log_per_steps={log_per_steps}').rows('train')
    assert [row['step'] for row in rows].count('40') == 1 and rows[-1]['step'] == '40'
    assert rows[-1]['update'] == '5' and float(rows[-1]['critic_loss']) > 0 and not rows[-2]['critic_loss']


def test_metrics_stay_out_of_the_log_when_told(graft):
    assert 'critic_loss' not in graft.run('agent_log=false').rows('train')[-1]


# --- evaluation

@pytest.mark.parametrize('options, steps', [
    ((), [0, 20, 40, 60]), (('train_steps=65',), [0, 20, 40, 60, 65]), (('evaluate_per_steps=0',), [0, 60]), (('evaluate_per_steps=1000',), [0, 60]),
    (('num_envs=16',), [0, 32, 48, 64]), (('train_steps=0',), [0]), (('learn_steps_after=3', 'train_steps=40'), [0, 20, 40])])
def test_evaluation_at_the_start_on_cadence_and_at_the_end_once_each(graft, monkeypatch, options, steps):
    evaluated, evaluate = [], Judges.evaluate

    def counted(agent, environment, episodes, *args):
        evaluated.append(environment)
        return evaluate(agent, environment, episodes, *args)

    monkeypatch.setattr(Judges, 'evaluate', counted)
    left = graft.run(*options)
    assert left.steps('eval') == steps and len(evaluated) == len(steps) and len(set(map(id, evaluated))) == 1


def test_evaluation_has_an_env_and_seeds_of_its_own_and_training_notices_nothing(graft, monkeypatch):
    made, make = [], session_module.make
    monkeypatch.setattr(session_module, 'make', lambda *args, **options: made.append(options) or make(*args, **options))
    left = {cadence: graft.run(f'evaluate_per_steps={cadence}', f'experiment=E{cadence}', *options, 'replay.save=true', 'num_envs=2', 'learn_per_steps=2')
            for cadence, options in {7: ('evaluate_episodes=3',), 20: (), 0: ('evaluate_episodes=1', 'evaluate_envs=1', 'save_per_steps=10')}.items()}
    assert [options['train'] for options in made] == [True, False] * 3
    for cadence in (7, 20):
        equal(left[cadence].weights(), left[0].weights())
        assert timeless(left[cadence].rows('train')) == timeless(left[0].rows('train'))
        for file in ('obs', 'action', 'reward', 'meta', 'cursors'):  # nothing of an evaluation is in the replay
            a, b = (np.fromfile(left[which].path / f'replay/{file}.bin', np.uint8) for which in (cadence, 0))
            size = min(len(a), len(b)) // (1 if file == 'cursors' else 2) // 4  # of the first lane: the ring's size depends on save_per_steps
            assert np.array_equal(a[:size], b[:size]) and (file == 'meta' or a[:size].any())
    session = graft.session('experiment=New')
    assert session.environment.seed != session.make_environment(2, train=False).seed


def test_a_score_depends_on_weights_step_and_seed_alone(graft):
    """So that curves with other cadences can be compared, and repeated."""
    often, seldom = (graft.run(f'evaluate_per_steps={cadence}', f'experiment=E{cadence}').rows('eval') for cadence in (20, 0))
    assert timeless(often[::3]) == timeless(seldom)


def test_train_steps_0_only_evaluates(graft):
    left = graft.run('train_steps=0', 'learn_steps_after=5')
    assert left.steps('eval') == [0] and left.updates() == 0 and not (left.path / 'train.csv').exists() and not (left.path / 'replay').exists()
    assert left.score == float(left.rows('eval')[0]['reward'])


def test_random_plays_a_hundred_episodes(graft):
    """CartPole's mean under random play is 22 (40,000 episodes with Gymnasium alone), its deviation 12."""
    left = graft.run('Agent=Agents.Random', 'train_steps=0', 'evaluate_episodes=100')
    assert abs(left.score - 22.3) < 4 * 11.9 / 100 ** 0.5 and left.path.parts[-3] == 'Random'
    assert isinstance(graft.session('Agent=Random', 'experiment=B').agent, Random)


@pytest.mark.parametrize('killed', [False, True])
def test_evaluating_a_run_changes_nothing_of_it(graft, killed):
    """load=true train_steps=0, also of a run that was killed and goes on afterwards as if nothing had happened."""
    options = ('save_per_steps=20', 'evaluate_per_steps=25', 'log_per_steps=10', 'replay.save=true')
    left = graft.left()
    if killed:
        whole = graft.run(*options, 'experiment=Whole')
        session = graft.session(*options)
        while session.step < 55:
            session.advance()
            session.records()
        session.close()
    else:
        graft.run(*options)
    before = {path: path.read_bytes() for path in left.path.rglob('*') if path.is_file()}
    assert graft.run('load=true', 'train_steps=0').score is not None
    after = {path: path.read_bytes() for path in left.path.rglob('*') if path.is_file()}
    if killed:  # it had not been evaluated yet: one row more
        assert after.pop(left.path / 'eval.csv').startswith(before.pop(left.path / 'eval.csv', b''))
    assert after == before
    if killed:
        graft.run(*options, 'load=true')
        equal(left.weights(), whole.weights())
        assert timeless(left.rows('train')) == timeless(whole.rows('train'))


# --- averages, precision, determinism

def test_ema_acts_with_the_average_and_only_when_asked(graft):
    session = graft.session('ema=true', 'ema_decay=0.9', 'agent.eval_epsilon=0')
    agent, name = session.agent, 'critic.'
    average = {key: value.clone() for key, value in agent.state_dict().items() if key.startswith(name)}
    while session.step < 60:
        count = agent.update_count
        session.advance()
        assert agent.update_count - count in (0, 1)
        if agent.update_count > count:
            average = {key: 0.9 * value + 0.1 * agent.state_dict()[key] for key, value in average.items()}
    assert agent.update_count == 9
    for key, value in average.items():
        assert torch.allclose(agent.state_dict()[f'ema_head.{key.removeprefix(name)}'], value, atol=1e-6)
    nothing = torch.zeros(200)
    seen = Step(torch.randn(200, 4), nothing.bool(), nothing, nothing.long())
    with torch.no_grad():
        for parameter in agent.critic.parameters():
            parameter.copy_(torch.randn_like(parameter))
        best = {which: getattr(agent, which)(seen.obs).mean(0).argmax(-1) for which in ('critic', 'ema_head')}
    assert not torch.equal(best['critic'], best['ema_head']) and torch.equal(agent.act(seen, greedy=True)[0], best['ema_head'])
    agent.step = 1000  # beyond exploring; training acts with the average too
    agent.epsilon = lambda step: 0.0
    assert torch.equal(agent.act(seen)[0], best['ema_head'])
    assert not [key for key in graft.run('seed=2', 'train_steps=0').weights() if key.startswith('ema')]


def test_the_same_seed_is_the_same_run_and_another_is_another(graft):
    first, same, other = (graft.run(f'experiment=E{number}', f'seed={seed}', 'num_envs=3') for number, seed in enumerate((1, 1, 2)))
    equal(first.weights(), same.weights())
    assert timeless(first.rows('train')) == timeless(same.rows('train')) != timeless(other.rows('train'))
    assert any(not torch.equal(weight, other.weights()[name]) for name, weight in first.weights().items())


@pytest.mark.parametrize('task', ['task=gym/Pendulum-v1', 'task=atari/pong'])
def test_bf16_learns_and_stays_near_fp32(graft, task):
    short = 'environment.max_steps=20' if 'gym' in task else 'environment.max_frames=80'
    runs = [graft.run(task, f'precision={precision}', f'experiment={precision}', short, 'train_steps=24') for precision in ('fp32', 'bf16')]
    losses = [float(run.rows('train')[-1]['critic_loss']) for run in runs]
    assert losses[0] != losses[1] and abs(losses[0] - losses[1]) < 0.05 * losses[0] + 0.005  # of one update
    assert all(weight.dtype == torch.float32 for weight in runs[1].weights().values() if weight.is_floating_point())


@pytest.mark.parametrize('units', [False, True], ids=['without units', 'with units'])
def test_the_precision_that_the_machine_is_fast_with(units, graft, monkeypatch, capsys):
    monkeypatch.setattr('torch.cpu.get_capabilities', lambda: {'avx512_bf16': units, 'amx_bf16': False})
    assert [graft.session(f'precision={name}', f'experiment={name}').agent.precision for name in ('auto', 'fp32', 'bf16')] == [
        'bf16' if units else 'fp32', 'fp32', 'bf16']
    assert capsys.readouterr().out.count('precision=bf16: this cpu has no units for it') == (not units)


def test_deterministic_asks_torch_for_it_and_the_next_run_does_not_inherit_it(graft):
    graft.session('deterministic=true')
    assert torch.are_deterministic_algorithms_enabled()
    graft.session('experiment=B')
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.slow
def test_compile_learns_the_same(graft):
    runs = [graft.run(f'compile={flag}', f'experiment={flag}', 'evaluate_per_steps=0') for flag in ('false', 'true')]
    losses = [float(run.rows('train')[-1]['critic_loss']) for run in runs]
    assert abs(losses[0] - losses[1]) < 1e-4 * abs(losses[0])


# --- what is written

def test_an_atari_run_writes_video_scalars_and_whole_rows(graft):
    left = graft.run('task=atari/pong', 'log_video=true', 'logger.tensorboard=true', 'action_repeat=3', 'train_steps=40', 'evaluate_per_steps=40',
                     'environment.max_frames=60', 'video.fps=15')
    for phase, names in (('train', ('reward', 'episode_length', 'critic_loss', 'q_mean', 'target_q', 'updates_per_second')),
                         ('eval', ('reward', 'reward_std', 'episode_length'))):
        rows = left.rows(phase)
        assert rows and all(int(row['frame']) == 3 * int(row['step']) for row in rows)
        assert all(row[name] != '' for row in rows for name in ('time', 'step', 'frame', 'update', 'episode'))
        assert all(rows[-1][name] != '' for name in (*names, 'fps', 'fps_train'))
    assert sorted(path.name for path in (left.path / 'videos').iterdir()) == ['0.mp4', '40.mp4']
    with av.open(str(left.path / 'videos/40.mp4')) as file:
        assert file.streams.video[0].average_rate == 15
        frames = [frame.to_ndarray(format='rgb24').astype(int) for frame in file.decode(video=0)]
    assert frames[0].shape == (210, 160, 3) and len(frames) == int(float(left.rows('eval')[-1]['episode_length'])) + 1
    assert abs(frames[-1][100, 80] - (144, 72, 17)).max() < 12  # Pong's brown field
    scalars = EventAccumulator(str(left.path / 'tensorboard')).Reload()
    assert {'train/critic_loss', 'eval/reward'} <= set(scalars.Tags()['scalars'])
    assert [event.step for event in scalars.Scalars('eval/reward')] == [0, 40]


def test_a_run_is_named_by_experiment_agent_suite_task_and_seed(graft):
    left = graft.run('experiment=My Exp', 'seed=12', 'train_steps=0', 'root=else/where', 'Agent=Random')
    assert left.path == left.path.parents[4] / 'else/where/My-Exp/Random/gym/CartPole-v1_12' or str(left.path) == 'else/where/My-Exp/Random/gym/CartPole-v1_12'
    assert (left.path / 'eval.csv').exists()


def test_plots_on_cadence_and_at_the_end_over_the_experiments_asked_for(graft, monkeypatch):
    drawn, plot = [], session_module.plot
    monkeypatch.setattr(session_module, 'plot', lambda *args, **options: drawn.append(time.perf_counter()) or plot(*args, **options))
    graft.run('experiment=First', 'train_steps=20')
    assert not drawn and not (graft.home / 'Benchmarking/First/Plots').exists()
    graft.run('experiment=Second+', 'plotting.plot=true', 'plot_per_steps=30', 'plotting.plot_experiments=[First,"Second.*"]', 'plotting.tabular=true')
    assert len(drawn) == 3  # steps 30 and 60, and the end
    plots = graft.home / 'Benchmarking/Second+/Plots'
    assert (plots / 'tasks.png').read_bytes().startswith(b'\x89PNG') and (plots / 'suites.png').exists()
    text = (plots / 'tabular.json').read_text()
    assert 'First' in text and 'Second+' in text and json.loads(text)
    assert not (graft.home / 'Benchmarking/First/Plots').exists()


@pytest.mark.parametrize('option', ['plotting.plot_agents=[Nobody]', 'plotting.plot_experiments=[Elsewhere]'])
def test_a_plot_that_finds_nothing_costs_no_run(graft, option):
    said = graft.main(*lines('plotting.plot=true', 'plot_per_steps=20', option))
    assert said.code == 0 and 'no plot: ' in said.out and graft.left().updates() == 10
