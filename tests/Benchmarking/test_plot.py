import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from Benchmarking.Curves import HUMAN, Curve, NothingToPlot, human_normalised, load, summarise
from Benchmarking.Plot import main, plot

STEPS = (0, 1000, 2000, 3000, 4000)


def write_run(root, experiment, agent, suite, leaf, scores, column='reward', steps=STEPS, repeat=4):
    folder = root / experiment / agent / suite / leaf
    folder.mkdir(parents=True)
    with open(folder / 'eval.csv', 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['time', 'step', 'frame', 'update', 'episode', column])
        writer.writerows([step / 10, step, step * repeat, '', '', score] for step, score in zip(steps, scores, strict=True))
    return folder / 'eval.csv'


@pytest.fixture
def root(tmp_path):
    for seed in (1, 2, 3):
        write_run(tmp_path, 'A', 'DQN', 'atari', f'pong_{seed}', np.linspace(-20.7, 14.6, 5) + seed - 2)
        write_run(tmp_path, 'B', 'DQN', 'atari', f'pong_{seed}', np.linspace(-20.7, -3.05, 5))
        write_run(tmp_path, 'A', 'DQN', 'dmc', f'walker_walk_{seed}', np.linspace(0, 900, 5))
    write_run(tmp_path, 'A', 'DQN', 'atari', 'battle_zone_1', np.linspace(2360, 37187.5, 5))
    write_run(tmp_path, 'A', 'Agents.SAC', 'gym', 'Pendulum-v1_1', np.linspace(-1500, -200, 5))
    write_run(tmp_path, 'A', 'DQN', 'classify', 'mnist_1', np.linspace(0.1, 0.98, 5), 'accuracy')
    return tmp_path


@pytest.fixture
def figures(monkeypatch):
    """The figures made, by the name of their file; their pixels are not drawn."""
    from matplotlib.figure import Figure

    made = []

    def keep(figure, file, **options):
        made.append(figure)
        Path(file).touch()

    monkeypatch.setattr(Figure, 'savefig', keep)
    return lambda: dict(zip(['tasks', 'suites'], made, strict=False))


def panels(figure):
    return {axis.get_title(): axis for axis in figure.axes}


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def everything(**options):
    return {'experiments': None, 'agents': None, 'suites': None, 'tasks': None} | options


@pytest.mark.parametrize(
    'game, score, expected',
    [
        ('pong', 14.6, 1.0),
        ('pong', -20.7, 0.0),
        ('battle_zone', 37187.5, 1.0),
        ('ALE/BattleZone-v5', 2360, 0.0),
        ('upndown', 533.4, 0.0),
        ('mspacman', 6951.6, 1),
    ],
)
def test_human_normalised_scores(game, score, expected):
    assert human_normalised(game, score) == pytest.approx(expected)


def test_games_without_a_human_score_have_no_normalised_one():
    assert human_normalised('tetris', 3.0) is None
    assert human_normalised('pon', 3.0) is None  # no match by a part of a name


def test_the_table_is_that_of_the_26_games():
    assert len(HUMAN) == 26
    assert human_normalised('Alien', 1000.0) == pytest.approx((1000 - 227.8) / (7127.7 - 227.8))


def test_one_panel_per_task_and_per_suite(root, figures):
    paths = plot('A', root=root)
    assert paths == [root / 'A' / 'Plots' / name for name in ('tasks.png', 'suites.png')]
    tasks, suites = figures().values()
    assert set(panels(tasks)) == {'Battle Zone (atari)', 'Pong (atari)', 'Mnist (classify)', 'Walker Walk (dmc)', 'Pendulum-v1 (gym)'}
    assert set(panels(suites)) == {'Atari', 'Classify', 'DeepMind Control', 'Gym'}
    assert legend(tasks) == ['DQN (A)', 'SAC (A)']
    assert not [path for path in root.rglob('*') if 'tmp' in path.name]


def test_suites_are_normalised(root, figures):
    plot('A', root=root)
    suites = panels(figures()['suites'])
    assert suites['Atari'].lines[0].get_ydata() == pytest.approx([0, 0.25, 0.5, 0.75, 1])  # mean of Pong and Battle Zone
    assert suites['Classify'].lines[0].get_ydata()[-1] == pytest.approx(98) and suites['Classify'].get_ylim() == (0, 100)
    assert suites['DeepMind Control'].lines[0].get_ydata()[-1] == pytest.approx(900) and suites['DeepMind Control'].get_ylim() == (0, 1000)
    assert suites['Gym'].lines[0].get_ydata()[-1] == pytest.approx(-200)


def test_lines_are_means_over_seeds_with_a_band_and_one_seed_has_none(root, figures):
    plot('A', root=root, suites='atari')
    tasks = panels(figures()['tasks'])
    line, band = tasks['Pong'].lines[0], tasks['Pong'].collections[0].get_paths()[0].vertices
    assert line.get_xdata().tolist() == list(STEPS)
    assert line.get_ydata() == pytest.approx(np.linspace(-20.7, 14.6, 5))
    at_end = band[band[:, 0] == 4000, 1]
    assert at_end.min() == pytest.approx(13.6) and at_end.max() == pytest.approx(15.6)  # of three runs the whole range
    assert np.ptp(tasks['Battle Zone'].collections[0].get_paths()[0].vertices[1:6, 1] - np.linspace(2360, 37187.5, 5)) < 1e-6


def test_two_experiments_stand_in_one_legend(root, figures):
    plot(['A', 'B'], root=root, tasks='pong')
    assert legend(figures()['tasks']) == ['DQN (A)', 'DQN (B)']
    assert len(panels(figures()['tasks'])['Pong'].lines) == 2


@pytest.mark.parametrize(
    'options, expected',
    [
        ({'tasks': 'pong'}, {'pong'}),
        ({'tasks': 'PONG'}, {'pong'}),
        ({'tasks': ['po.*', 'walker_walk']}, {'pong', 'walker_walk'}),
        ({'tasks': 'atari/.*'}, {'pong', 'battle_zone'}),
        ({'suites': ['dmc', 'gym']}, {'walker_walk', 'Pendulum-v1'}),
        ({'agents': 'SAC'}, {'Pendulum-v1'}),
        ({'experiments': 'B'}, {'pong'}),
    ],
)
def test_patterns_match_whole_names(root, options, expected):
    assert {curve.task for curve in load(root, everything(**options))} == expected


@pytest.mark.parametrize('options', [{'tasks': 'pon'}, {'experiments': 'C'}, {'agents': 'D'}, {'suites': 'Atar'}])
def test_nothing_matches(root, options):
    with pytest.raises(NothingToPlot, match='atari/pong') as caught:
        plot(root=root, **options)
    assert '\n' not in str(caught.value)


def test_nothing_is_there_yet(tmp_path):
    with pytest.raises(NothingToPlot, match='no runs at all'):
        plot(root=tmp_path)
    write_run(tmp_path, 'A', 'DQN', 'atari', 'pong_1', [], steps=())
    with pytest.raises(NothingToPlot, match='none has a score'):
        plot(root=tmp_path)


def test_a_bad_pattern_is_named(root):
    with pytest.raises(ValueError, match=r"tasks='\('"):
        plot(root=root, tasks='(')


@pytest.mark.parametrize(
    'leaf, task, seed, overrides',
    [
        ('pong_1', 'pong', 1, ''),
        ('ball_in_cup_catch_12', 'ball_in_cup_catch', 12, ''),
        ('CartPole-v1_3', 'CartPole-v1', 3, ''),
        ('level_2_7', 'level_2', 7, ''),
        ('pong_1__lr=0.1,seed=1', 'pong', 1, 'lr=0.1'),
        ('pong_2__seed=2,task=atari-pong', 'pong', 2, ''),
        ('pong_1__batch_size=32_1', 'pong', 1, 'batch_size=32_1'),
    ],
)
def test_names_of_folders(tmp_path, leaf, task, seed, overrides):
    write_run(tmp_path, 'A', 'DQN', 'atari', leaf, range(5))
    (curve,) = load(tmp_path, everything())
    assert (curve.task, curve.seed, curve.overrides) == (task, seed, overrides)


def test_runs_with_other_overrides_are_not_seeds_of_each_other(tmp_path, figures):
    for rate in ('0.1', '0.01'):
        write_run(tmp_path, 'A', 'DQN', 'atari', f'pong_1__lr={rate}', range(5))
    plot(root=tmp_path)
    assert legend(figures()['tasks']) == ['DQN (A) lr=0.01', 'DQN (A) lr=0.1']


def test_an_offline_learner_is_a_line_of_its_own(tmp_path):
    write_run(tmp_path, 'A', 'DQN', 'atari', 'pong_1', range(5))
    write_run(tmp_path, 'A', 'DQN', 'atari', 'pong_1/offline', range(5))
    assert [curve.label for curve in load(tmp_path, everything())] == ['DQN (A)', 'DQN (A) offline']


def test_a_row_in_the_middle_of_being_written_is_left_out(tmp_path):
    path = write_run(tmp_path, 'A', 'DQN', 'atari', 'pong_1', range(5))
    whole = path.read_text()
    path.write_text(whole + '500.0,5000,20000,,,1')  # 17.5, killed
    assert load(tmp_path, everything())[0].x.tolist() == list(STEPS)
    path.write_text(whole + '500.0,50')
    assert load(tmp_path, everything())[0].y.tolist() == [0, 1, 2, 3, 4]


def test_blank_and_nan_scores_are_left_out(tmp_path):
    write_run(tmp_path, 'A', 'DQN', 'atari', 'pong_1', [1, '', 'nan', 4, 5])
    assert load(tmp_path, everything())[0].x.tolist() == [0, 3000, 4000]


def test_axes_and_steps(root, figures):
    assert load(root, everything(tasks='pong'), x='frame', steps=2000)[0].x.tolist() == [0, 4000, 8000]
    plot('A', root=root, tasks='pong', x='time')
    axis = panels(figures()['tasks'])['Pong']
    assert axis.get_xlabel() == 'Time (minutes)' and axis.lines[0].get_xdata()[-1] == pytest.approx(400 / 60)


def curve(x, y, task='pong'):
    return Curve('A', 'DQN', 'atari', task, 1, np.array(x, float), np.array(y, float))


def test_runs_evaluated_at_other_steps_are_interpolated_within_their_range():
    x, band = summarise([[curve([0, 10, 20], [0, 10, 20]), curve([0, 5, 10], [2, 2, 2])]])
    assert x.tolist() == [0, 5, 10, 20]
    assert band.point.tolist() == [1, 3.5, 6, 20]  # the second run is not carried on beyond its end
    assert band.low[-1] == band.high[-1] == 20


def test_a_mean_over_tasks_ends_with_the_shortest_task():
    x, band = summarise([[curve([0, 10, 20], [0, 10, 20])], [curve([0, 10], [100, 100], 'qbert')]])
    assert x.tolist() == [0, 10] and band.point.tolist() == [50, 55]


def test_games_without_a_human_score_are_left_out_with_a_note(root, figures):
    write_run(root, 'A', 'DQN', 'atari', 'tetris_1', range(5))
    notes = []
    plot('A', root=root, suites='atari', say=notes.append)
    assert len(notes) == 1 and 'tetris' in notes[0]
    assert 'Tetris' in panels(figures()['tasks'])
    assert panels(figures()['suites'])['Atari'].lines[0].get_ydata()[-1] == pytest.approx(1)
    assert [path.name for path in plot('A', root=root, tasks='tetris', say=notes.append)] == ['tasks.png']


def test_tabular(root):
    write_run(root, 'A', 'DQN', 'atari', 'pong_4', [-20.7, -20.7], steps=(0, 2000))  # stopped early
    path = plot('A', root=root, suites='atari', tabular=True)[-1]
    table = json.loads(path.read_text())
    row = table['tasks']['atari/pong']['DQN (A)']
    assert (row['step'], row['seeds']) == (2000, [4])  # the last step that all reached
    assert row['mean'] == pytest.approx((3 * -3.05 - 20.7) / 4) and row['median'] == pytest.approx((-4.05 - 3.05) / 2)
    assert row['low'] <= row['mean'] <= row['high']
    assert table['suites']['atari']['DQN (A)']['tasks'] == 2


@pytest.fixture
def reference(tmp_path):
    path = tmp_path / 'reference.csv'
    lines = ['agent,task,seed,frame,episode_reward']
    lines += [f'DrQ-v2,cup_catch,{seed},{frame},{frame / 100}' for seed in (1, 2) for frame in range(0, 40001, 2000)]
    lines += ['DrQ-v2,hopper_hop,1,0,5', 'Other,cup_catch,1,0,7']
    path.write_text('\n'.join(lines) + '\n')
    return path


def test_reference_curves_lie_over_the_tasks_that_are_here(tmp_path, figures, reference):
    write_run(tmp_path, 'A', 'DQN', 'dmc', 'ball_in_cup_catch_1', range(5), repeat=2)
    plot('A', root=tmp_path, x='frame', reference=reference, reference_agents='DrQ.*')
    figure = figures()['tasks']
    assert legend(figure) == ['DQN (A)', 'DrQ-v2 (reference)'] and len(figure.axes) == 1
    own, other = figure.axes[0].lines
    assert other.get_linestyle() == '--' and figure.axes[0].get_xlim() == (0, 8000)
    assert other.get_xdata().tolist() == [0, 2000, 4000, 6000, 8000] and other.get_ydata()[-1] == 80


@pytest.mark.parametrize('x', ['step', 'time'])
def test_frames_and_agent_steps_do_not_mix(root, reference, x):
    with pytest.raises(ValueError, match='x=frame'):
        plot('A', root=root, x=x, reference=reference)


def test_a_reference_without_its_columns_is_named(root, tmp_path):
    (tmp_path / 'bad.csv').write_text('agent,frame\nDQN,3\n')
    with pytest.raises(ValueError, match='bad.csv'):
        plot('A', root=root, x='frame', reference=tmp_path / 'bad.csv')


def test_a_failed_drawing_leaves_the_older_one(root, monkeypatch):
    from matplotlib.figure import Figure

    path = plot('A', root=root)[0]
    before = path.read_bytes()

    def fail(figure, file, **options):
        Path(file).write_bytes(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(Figure, 'savefig', fail)
    with pytest.raises(OSError, match='disk full'):
        plot('A', root=root)
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 2


def test_a_reader_of_the_older_drawing_is_not_disturbed(root):
    path = plot('A', root=root, tasks='pong')[0]
    before = path.read_bytes()
    with open(path, 'rb') as reader:
        plot('B', root=root, tasks='pong', out=path.parent)
        assert reader.read() == before != path.read_bytes()


def test_the_command_line(root, capsys):
    assert main(['A', 'B', '--root', str(root), '--tasks', 'pong', '--out', str(root / 'out')]) == 0
    assert (root / 'out' / 'tasks.png').read_bytes().startswith(b'\x89PNG') and 'tasks.png' in capsys.readouterr().out
    assert main(['C', '--root', str(root)]) == 1
    assert 'C' in capsys.readouterr().err


@pytest.mark.parametrize('wrong, right', [('root=here', '--root here'), ('tasks=pong', '--tasks pong')])
def test_a_flag_written_as_in_a_run_is_refused(root, capsys, wrong, right):
    with pytest.raises(SystemExit):
        main([wrong, '--root', str(root)])
    assert f'{wrong}: write {right}' in capsys.readouterr().err


def test_the_module_runs_without_a_display(root):
    environment = {name: value for name, value in os.environ.items() if name not in ('DISPLAY', 'MPLBACKEND', 'WAYLAND_DISPLAY')}
    command = [sys.executable, '-m', 'Benchmarking.Plot', 'B', '--root', str(root)]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (root / 'B' / 'Plots' / 'tasks.png').exists()
