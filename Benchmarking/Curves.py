"""Learning curves as data: which runs there are, their scores, published ones beside them, and a statistic over several."""
import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from Benchmarking.Statistics import Interval, interval
from Benchmarking.Table import SCORES, read_table

ROOT = Path(__file__).parent
RUN_NAME = re.compile(r'(?P<task>.+?)_(?P<seed>\d+)(?:__(?P<overrides>.*))?')  # <task>_<seed>, and in a multirun __<overrides>
NAMED_ELSEWHERE = re.compile(r'(?:^|,)\+*(?:seed|task|Agent|experiment)=[^,]*')  # overrides that the other folders say already
GRID_POINTS = 200  # on which curves are compared whose evaluations do not fall on the same x

HUMAN = {  # game: score of random play, score of a human. Source: 'Human-level control' protocol with no-op starts, the 26 games of Atari 100k
    'Alien': (227.8, 7127.7),
    'Amidar': (5.8, 1719.5),
    'Assault': (222.4, 742.0),
    'Asterix': (210.0, 8503.3),
    'BankHeist': (14.2, 753.1),
    'BattleZone': (2360.0, 37187.5),
    'Boxing': (0.1, 12.1),
    'Breakout': (1.7, 30.5),
    'ChopperCommand': (811.0, 7387.8),
    'CrazyClimber': (10780.5, 35829.4),
    'DemonAttack': (152.1, 1971.0),
    'Freeway': (0.0, 29.6),
    'Frostbite': (65.2, 4334.7),
    'Gopher': (257.6, 2412.5),
    'Hero': (1027.0, 30826.4),
    'Jamesbond': (29.0, 302.8),
    'Kangaroo': (52.0, 3035.0),
    'Krull': (1598.0, 2665.5),
    'KungFuMaster': (258.5, 22736.3),
    'MsPacman': (307.3, 6951.6),
    'Pong': (-20.7, 14.6),
    'PrivateEye': (24.9, 69571.3),
    'Qbert': (163.9, 13455.0),
    'RoadRunner': (11.5, 7845.0),
    'Seaquest': (68.4, 42054.7),
    'UpNDown': (533.4, 11693.2),
}


class NothingToPlot(ValueError):
    """No run, or no evaluation yet, matches what was asked for."""


@dataclass(frozen=True)
class Curve:
    """The scores of one run. x: (n,) float64, increasing; y: (n,) float64, raw scores, of the column `column`."""

    experiment: str
    agent: str
    suite: str
    task: str
    seed: int
    x: np.ndarray
    y: np.ndarray
    overrides: str = ''
    reference: bool = False
    column: str = 'reward'

    @property
    def accuracy(self) -> bool:
        """Whether the score is the share that was right, 0 to 1."""
        return self.column == 'accuracy'

    @property
    def label(self) -> str:
        return f'{self.agent} ({self.experiment})' + (f' {self.overrides}' if self.overrides else '')


def canonical(task: str) -> str:
    """One spelling per task: `ALE/BattleZone-v5`, `battle_zone` and `battlezone` are the same game, `ball_in_cup_catch` is `cup_catch`."""
    task = re.sub(r'(NoFrameskip|Deterministic)?-v\d+$', '', task.rsplit('/', 1)[-1])
    return re.sub(r'[^a-z0-9]', '', task.lower()).removeprefix('ballin')


def human_normalised(task: str, score: Any) -> Any:
    """(score − random) / (human − random).

    Args:
        task: an Atari game in any spelling.
        score: raw, full game, unclipped; number or array.

    Returns:
        0 at random play, 1 at human play; None if the table lacks the game.
    """
    bounds = {canonical(game): bounds for game, bounds in HUMAN.items()}.get(canonical(task))
    return None if bounds is None else (score - bounds[0]) / (bounds[1] - bounds[0])


def load(
    root: Path | str,
    asked: Mapping[str, str | Sequence[str] | None],
    *,
    steps: int | None = None,
    x: str = 'step',
    phase: str = 'eval',
    metric: str | None = None,
) -> list[Curve]:
    """Reads the runs that match, in the order of their paths.

    Raises:
        NothingToPlot: with what there is.
    """
    patterns = {name: patterns_of(name, value) for name, value in asked.items()}
    found_paths = sorted(
        file for folder in ('', 'offline/') for file in Path(root).glob(f'*/*/*/*/{folder}{phase}.csv')
    )  # a learner's is in offline/
    paths = [(path, match) for path in found_paths if (match := RUN_NAME.fullmatch(path.relative_to(root).parts[3]))]
    there: dict[str, set[str]] = {name: set() for name in asked}
    curves, matching = [], 0
    for path, match in paths:
        experiment, agent, suite, _, *offline = path.relative_to(root).parts[:-1]
        agent, task = agent.removeprefix('Agents.'), match['task']
        names = {'experiments': (experiment,), 'agents': (agent,), 'suites': (suite,), 'tasks': (f'{suite}/{task}', task)}
        for name in asked:
            there[name].add(names[name][0])
        if not all(matches(patterns[name], names[name]) for name in asked):
            continue
        matching += 1
        xs, ys, column = _read(path, suite, x, steps, metric)
        if len(xs):
            overrides = ' '.join(filter(None, [NAMED_ELSEWHERE.sub('', match['overrides'] or '').strip(','), *offline]))
            curves.append(Curve(experiment, agent, suite, task, int(match['seed']), xs, ys, overrides, column=column))
    if curves:
        return curves
    if matching:
        raise NothingToPlot(f'{matching} run(s) match, but none has a score in {phase}.csv yet' + (f' in column {metric}' if metric else ''))
    wanted = ', '.join(f'{name}={value!r}' for name, value in asked.items() if value is not None) or 'anything'
    found = '; '.join(f'{name}: {", ".join(sorted(values)[:20])}' for name, values in there.items()) if paths else 'no runs at all'
    raise NothingToPlot(f'no run under {root} matches {wanted}; there: {found}')


def load_reference(path: Path, curves: Sequence[Curve], agents: Sequence[re.Pattern[str]] | None = None) -> Iterator[Curve]:
    """Published curves of the tasks in `curves`, as far as those go.

    Args:
        path: CSV with columns agent, task (or game), seed, frame, episode_reward (or score).
        curves: the runs they are drawn over, on x = frame.
        agents: patterns of the agents to take; None takes all.

    Raises:
        ValueError: the file lacks a column.
    """
    ours = {canonical(curve.task): curve for curve in curves}
    ends = {name: max(float(curve.x[-1]) for curve in curves if canonical(curve.task) == name) for name in ours}
    runs: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    with open(path, newline='', encoding='utf-8') as file:
        for row in csv.DictReader(file):
            try:
                task, score = row.get('task') or row['game'], row.get('episode_reward') or row['score']
                agent, seed, point = row['agent'], int(row['seed']), (float(row['frame']), float(score))
            except KeyError as error:
                raise ValueError(f'reference={path} has no column {error}: expected agent, task, seed, frame, episode_reward') from error
            if canonical(task) in ours and (agents is None or matches(agents, (agent,))):
                runs.setdefault((agent, canonical(task), seed), []).append(point)
    for (agent, name, seed), points in sorted(runs.items()):
        xs, ys = np.array(sorted(points)).T
        shown = slice(0, int(np.searchsorted(xs, ends[name])) + 1)  # one point beyond the axis, so that the line reaches its end
        yield replace(ours[name], experiment='reference', agent=agent, seed=seed, x=xs[shown], y=ys[shown], overrides='', reference=True)


def summarise(tasks: Sequence[Sequence[Curve]], statistic: str = 'mean') -> tuple[np.ndarray, Interval]:
    """A statistic over the runs of one or more tasks along a common x.

    Runs that were evaluated at other x are interpolated there, within their own range; where a run has ended, the others go on without it.
    Points where a task has no run at all are left out.

    Args:
        tasks: per task, its runs.
        statistic: 'mean' or 'iqm'.

    Returns:
        x (P,) and the interval at each.
    """
    runs = [curve for task in tasks for curve in task]
    grid = np.unique(np.concatenate([curve.x for curve in runs]))
    if len(grid) > GRID_POINTS and any(len(curve.x) != len(grid) for curve in runs):
        grid = np.linspace(grid[0], grid[-1], GRID_POINTS)
    scores = [np.stack([np.interp(grid, curve.x, curve.y, left=np.nan, right=np.nan) for curve in task]) for task in tasks]
    there = ~np.isnan(np.concatenate(scores))
    whole = np.all([~np.isnan(task).all(0) for task in scores], axis=0)
    if not whole.any():
        return grid[:0], Interval(grid[:0], grid[:0], grid[:0])
    grid, scores, there = grid[whole], [task[:, whole] for task in scores], there[:, whole]
    starts = [0, *(np.flatnonzero((there[:, 1:] != there[:, :-1]).any(0)) + 1), len(grid)]  # between these the same runs are there
    parts = []
    for start, stop in zip(starts[:-1], starts[1:], strict=True):
        present = [task[~np.isnan(task[:, start]), start:stop] for task in scores]
        parts.append(interval(present, statistic, resamples=1000))
    return grid, Interval(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def patterns_of(name: str, value: str | Sequence[str] | None) -> list[re.Pattern[str]] | None:
    try:
        return None if value is None else [re.compile(str(one), re.IGNORECASE) for one in ([value] if isinstance(value, str) else value)]
    except re.error as error:
        raise ValueError(f'{name}={value!r} is not a regular expression: {error}') from error


def matches(patterns: Sequence[re.Pattern[str]] | None, names: Iterable[str]) -> bool:
    """Whether a pattern matches one of the names as a whole, or is that name (which may hold characters that mean something else in a pattern)."""
    return patterns is None or any(pattern.fullmatch(name) or pattern.pattern == name for pattern in patterns for name in names)


def _read(path: Path, suite: str, x: str, steps: int | None, metric: str | None) -> tuple[np.ndarray, np.ndarray, str]:
    """x and score of the complete rows that have both, and the score's column; of rows with the same x the last counts."""
    header, rows = read_table(path)
    order = (metric,) if metric else tuple(reversed(SCORES)) if suite == 'classify' else SCORES  # a classifier's score is its accuracy
    columns = [name for name in order if name in header and x in header]
    for column in columns:
        points = {}
        at, score, step = header.index(x), header.index(column), header.index('step')
        for row in rows:
            if row[at] and row[score] and np.isfinite(float(row[score])) and (steps is None or float(row[step]) <= steps):
                points[float(row[at])] = float(row[score])
        if points:  # a header may name a score that this run never has
            return np.array(sorted(points)), np.array([points[key] for key in sorted(points)]), column
    return np.array([]), np.array([]), ''
