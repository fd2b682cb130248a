"""Curves of accuracy, beside those of rewards."""
import csv
import json
from pathlib import Path

import pytest

from Benchmarking.Curves import load
from Benchmarking.Plot import plot


def write_run(root, experiment, suite, leaf, header, rows):
    folder = root / experiment / 'DQN' / suite / leaf
    folder.mkdir(parents=True)
    with open(folder / 'eval.csv', 'w', newline='') as file:
        csv.writer(file).writerows([['time', 'step', 'frame', *header], *([100 * step, 1000 * step, 1000 * step, *row] for step, row in enumerate(rows))])


@pytest.fixture
def runs(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, 'A', 'classify', f'mnist_{seed}', ['accuracy', 'loss'], [[0.1, 2.3], [0.9, 0.4], [0.96 + seed / 100, 0.1]])
        write_run(tmp_path, 'A', 'classify', f'cifar10_{seed}', ['accuracy', 'loss'], [[0.1, 2.3], [0.3, 2], [0.48 + seed / 100, 1.5]])
    write_run(tmp_path, 'B', 'classify', 'mnist_1', ['reward'], [[-5], [-4], [-3]])  # a generator
    write_run(tmp_path, 'C', 'gym', 'Digits-v0_1', ['reward', 'accuracy'], [['', 0.2], ['', 0.4], ['', 0.8]])
    write_run(tmp_path, 'D', 'gym', 'Digits-v0_1', ['reward', 'accuracy'], [[5, 0.2], [6, 0.4], [7, 0.8]])
    return tmp_path


def axes_of(runs, monkeypatch, *experiments, **options):
    from matplotlib.figure import Figure

    made = []
    with monkeypatch.context() as patch:
        patch.setattr(Figure, 'savefig', lambda figure, file, **_: (made.append(figure), Path(file).touch()))
        plot(list(experiments), root=runs, **options)
    tasks, suites = made
    return [{(axis.get_title(), axis.get_ylabel()): axis for axis in figure.axes} for figure in (tasks, suites)]


def test_accuracies_are_drawn_in_percent(runs, monkeypatch):
    tasks, suites = axes_of(runs, monkeypatch, 'A')
    assert set(tasks) == {('Mnist', 'Accuracy (%)'), ('Cifar10', 'Accuracy (%)')} and set(suites) == {('Classify', 'Accuracy (%)')}
    for axis, expected in (
        (tasks['Mnist', 'Accuracy (%)'], [10, 90, 97.5]),
        (tasks['Cifar10', 'Accuracy (%)'], [10, 30, 49.5]),
        (suites['Classify', 'Accuracy (%)'], [10, 60, 73.5]),  # the mean over the tasks
    ):
        assert axis.lines[0].get_ydata() == pytest.approx(expected) and axis.get_ylim() == (0, 100)
    band = tasks['Mnist', 'Accuracy (%)'].collections[0].get_paths()[0].vertices
    at_end = band[band[:, 0] == 2000, 1]
    assert at_end.min() == pytest.approx(97) and at_end.max() == pytest.approx(98)


def test_the_table_has_accuracies_as_they_are_logged(runs):
    written = json.loads(plot('A', root=runs, tabular=True)[-1].read_text())
    assert written['tasks']['classify/mnist']['DQN (A)']['mean'] == pytest.approx(0.975)
    row = written['suites']['classify']['DQN (A)']
    assert row['mean'] == pytest.approx(0.735) and row['median'] == pytest.approx((0.5 + 0.97) / 2) and (row['tasks'], row['seeds']) == (2, [2, 2])
    assert 0.49 <= row['low'] <= row['mean'] <= row['high'] <= 0.98


def test_a_generator_of_the_same_task_has_axes_of_its_own(runs, monkeypatch):
    tasks, suites = axes_of(runs, monkeypatch, 'A', 'B', tasks='mnist')
    assert set(tasks) == {('Mnist', 'Accuracy (%)'), ('Mnist', 'Reward')} and set(suites) == {('Classify', 'Accuracy (%)'), ('Classify', 'Reward')}
    assert tasks['Mnist', 'Reward'].lines[0].get_ydata().tolist() == [-5, -4, -3] and tasks['Mnist', 'Reward'].get_ylim()[0] < -5
    written = json.loads(plot(['A', 'B'], root=runs, tasks='mnist', tabular=True)[-1].read_text())
    assert written['tasks']['classify/mnist']['DQN (B)']['mean'] == -3
    assert written['tasks']['classify/mnist accuracy']['DQN (A)']['mean'] == pytest.approx(0.975)
    assert set(written['suites']) == {'classify'} and set(written['suites']['classify']) == {'DQN (A)'}  # rewards have no common scale


def test_another_metric_of_a_classifier_is_no_accuracy(runs, monkeypatch):
    tasks, suites = axes_of(runs, monkeypatch, 'A', metric='loss')
    assert tasks['Mnist', 'Loss'].lines[0].get_ydata() == pytest.approx([2.3, 0.4, 0.1])
    assert {axis.lines[0].get_ydata()[-1] for axis in suites.values()} == {1.5}  # a line per task


def test_accuracy_is_the_score_where_there_is_no_reward(runs, monkeypatch):
    asked = {'experiments': None, 'agents': None, 'suites': 'gym', 'tasks': None}
    found = {curve.experiment: (curve.column, curve.y.tolist()) for curve in load(runs, asked)}
    assert found == {'C': ('accuracy', [0.2, 0.4, 0.8]), 'D': ('reward', [5, 6, 7])}
    tasks, _ = axes_of(runs, monkeypatch, 'C')
    assert tasks['Digits-v0', 'Accuracy (%)'].lines[0].get_ydata() == pytest.approx([20, 40, 80])
