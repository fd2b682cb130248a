"""Learning curves of finished and running runs: one panel per task, and one per suite with scores normalised.

python -m Benchmarking.Plot                                  # everything
python -m Benchmarking.Plot Exp1 Exp2 --tasks 'pong|qbert'   # patterns must match whole names
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from Benchmarking import replacing
from Benchmarking.Curves import HUMAN, ROOT, Curve, canonical, human_normalised, load, load_reference, patterns_of, summarise
from Benchmarking.Statistics import STATISTICS, interval

AXES = {'step': 'Agent steps', 'frame': 'Frames', 'time': 'Time'}
PALETTE = (
    '#0173b2',
    '#de8f05',
    '#029e73',
    '#d55e00',
    '#cc78bc',
    '#ca9161',
    '#7a52a8',
    '#949494',
    '#b8ad00',
    '#56b4e9',
)  # told apart by the colour-blind
LINE_STYLES = ('-', '--', ':', '-.', (0, (5, 1, 1, 1, 1, 1)))
STYLE: Any = {
    'font.size': 10,
    'axes.titlesize': 11,
    'axes.titleweight': 'bold',
    'axes.labelcolor': '#333333',
    'axes.edgecolor': '#888888',
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'axes.axisbelow': True,
    'grid.color': '#e4e4e4',
    'xtick.color': '#555555',
    'ytick.color': '#555555',
    'legend.frameon': False,
}

Panel = dict[str, list[list[Curve]]]  # legend label -> per task, its runs
Key = tuple[str, str, bool]  # suite, task ('' for all of them), whether the scores are accuracies: those share no axis with returns


def plot(
    experiments: str | Sequence[str] | None = None,
    *,
    root: Path | str = ROOT,
    out: Path | str | None = None,
    agents: str | Sequence[str] | None = None,
    suites: str | Sequence[str] | None = None,
    tasks: str | Sequence[str] | None = None,
    steps: int | None = None,
    x: str = 'step',
    phase: str = 'eval',
    metric: str | None = None,
    statistic: str = 'mean',
    reference: Path | str | None = None,
    reference_agents: str | Sequence[str] | None = None,
    tabular: bool = False,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Draws `tasks.png` and `suites.png` from `<root>/<experiment>/<Agent>/<suite>/<task>_<seed>/<phase>.csv`.

    Lines are the mean (or IQM) over seeds with its 95% bootstrap interval; nothing is smoothed. Accuracies (of classifiers, column `accuracy`, 0–1)
    are drawn in percent. In `suites.png` Atari is human-normalised, Classify has the axis 0–100%, DMC 0–1000, and suites without a common scale
    show a line per task.

    Args:
        experiments: names, or regular expressions that match whole names whatever the case; None takes all.
        root: the folder of experiments.
        out: where the figures go; by default `<root>/<experiment>/Plots` of the first experiment drawn.
        agents: likewise.
        suites: likewise.
        tasks: likewise; a task is `pong` or `atari/pong`.
        steps: leave out what lies beyond so many agent steps.
        x: 'step' (agent steps), 'frame' (steps × action repeat) or 'time' (of the run, evaluation included).
        phase: which CSV of a run.
        metric: which column; by default the score.
        statistic: 'mean' or 'iqm', over seeds and in suites over tasks.
        reference: CSV of published curves with columns agent, task, seed, frame, episode_reward; drawn dashed over the tasks that are here.
            It needs x='frame'.
        reference_agents: which agents of that file.
        tabular: also write `tabular.json`: scores at the last x that all seeds reached; accuracies are 0–1, as in the CSV.
        say: takes notes about what was left out.

    Returns:
        The files written, each replaced as a whole.

    Raises:
        NothingToPlot: nothing matches.
        ValueError: an unknown axis or statistic, a bad pattern, or a reference asked for over agent steps or time.
    """
    _check(x, statistic, reference)
    asked = {'experiments': experiments, 'agents': agents, 'suites': suites, 'tasks': tasks}
    curves = load(root, asked, steps=steps, x=x, phase=phase, metric=metric)
    folder = Path(out) if out is not None else Path(root) / curves[0].experiment / 'Plots'
    if reference is not None:
        curves += list(load_reference(Path(reference), curves, patterns_of('reference_agents', reference_agents)))
    by_task, by_suite, notes = _panels(curves)
    for note in notes:
        say(note)
    written = [folder / 'tasks.png']
    _draw(written[0], by_task, curves, x, statistic)
    if by_suite:
        written.append(folder / 'suites.png')
        _draw(written[-1], by_suite, curves, x, statistic)
    if tabular:
        written.append(folder / 'tabular.json')
        _write_table(written[-1], by_task, by_suite, x, statistic)
    return written


def _check(x: str, statistic: str, reference: Path | str | None) -> None:
    if x not in AXES:
        raise ValueError(f'x={x!r}: expected one of {", ".join(AXES)}')
    if statistic not in STATISTICS:
        raise ValueError(f'statistic={statistic!r}: expected one of {", ".join(STATISTICS)}')
    if reference is not None and x != 'frame':
        raise ValueError(f'reference={reference} counts frames, and x={x!r} does not: set x=frame')


def _panels(curves: Sequence[Curve]) -> tuple[dict[Key, Panel], dict[Key, Panel], list[str]]:
    """Raw curves by suite and task, normalised ones by suite, and notes about what the second leaves out."""
    by_task: dict[Key, dict[str, list[Curve]]] = {}
    for curve in sorted(curves, key=lambda curve: (curve.suite, canonical(curve.task), curve.reference, curve.label, curve.seed)):
        by_task.setdefault((curve.suite, curve.task, curve.accuracy), {}).setdefault(curve.label, []).append(curve)
    by_suite: dict[Key, Panel] = {}
    unknown = []
    for (suite, task, accuracy), lines in by_task.items():
        human = suite == 'atari' and not accuracy
        if human and human_normalised(task, 0.0) is None:
            unknown.append(task)
            continue
        panel = by_suite.setdefault((suite, '', accuracy), {})
        for label, runs in lines.items():
            scaled = [replace(run, y=human_normalised(task, run.y)) for run in runs] if human else runs
            panel.setdefault(label, []).append(scaled)
    notes = [f'not in suites.png: {", ".join(unknown)} (no human score to normalise with)'] if unknown else []
    return {key: {label: [runs] for label, runs in lines.items()} for key, lines in by_task.items()}, by_suite, notes


def _draw(path: Path, panels: Mapping[Key, Panel], curves: Sequence[Curve], x: str, statistic: str) -> None:
    """Draws a grid of panels with one legend below. Uses no global state of matplotlib and no display."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    labels = list(dict.fromkeys(curve.label for curve in sorted(curves, key=lambda curve: (curve.reference, curve.label))))
    references = {curve.label for curve in curves if curve.reference}
    colours = {label: PALETTE[number % len(PALETTE)] for number, label in enumerate(labels)}
    columns = int(np.ceil(np.sqrt(len(panels))))
    rows = int(np.ceil(len(panels) / columns))
    size = (6.4, 4.2) if len(panels) == 1 else (3.7 * columns, 2.9 * rows)
    suites = {suite for suite, _, _ in panels}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(size[0], size[1] + 0.4), layout='constrained', dpi=150)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for number, (axis, ((suite, task, _), panel)) in enumerate(zip(axes, panels.items(), strict=False)):
            _draw_panel(axis, suite, task, panel, colours, x, statistic)
            axis.set_title(_title(task) + (f' ({suite})' if len(suites) > 1 else '') if task else _title(suite))
            if number + columns < len(panels):
                axis.set_xlabel('')
            if number % columns and axis.get_ylabel() == axes[number - 1].get_ylabel():
                axis.yaxis.label.set_visible(False)
        for axis in axes[len(panels) :]:
            axis.remove()
        shown = [label for label in labels if any(label in panel for panel in panels.values())]
        handles = [Line2D([], [], color=colours[label], linewidth=2, linestyle='--' if label in references else '-', label=label) for label in shown]
        widest = max(map(len, shown))
        columns = max(1, min(len(shown), int(size[0] * 11 / (widest + 6))))
        seeds = any(len(runs) > 1 for panel in panels.values() for tasks in panel.values() for runs in tasks)
        title = f'{"mean" if statistic == "mean" else "interquartile mean"} over seeds, 95% bootstrap interval' if seeds else None
        figure.legend(handles=handles, loc='outside lower center', ncols=columns, title=title, title_fontsize=8)
        with replacing(path) as temporary:
            figure.savefig(temporary, format='png')


def _draw_panel(axis: Any, suite: str, task: str, panel: Panel, colours: Mapping[str, str], x: str, statistic: str) -> None:
    own = [curve for tasks in panel.values() for runs in tasks for curve in runs if not curve.reference]
    end = max(float(curve.x[-1]) for curve in own)
    scale, unit = _seconds_unit(end) if x == 'time' else (1.0, '')
    accuracy = own[0].accuracy
    several = not accuracy and suite not in ('atari', 'dmc') and len({curve.task for curve in own}) > 1  # no common scale: a line per task
    styles = {name: LINE_STYLES[number % len(LINE_STYLES)] for number, name in enumerate(sorted({curve.task for curve in own}))}
    for label, tasks in panel.items():
        for group in [[runs] for runs in tasks] if several else [tasks]:
            style = styles[group[0][0].task] if several else '--' if group[0][0].reference else '-'
            xs, band = summarise(group, statistic)
            point, low, high = (100 * values if accuracy else values for values in band)
            marker = 'o' if len(xs) == 1 else None
            axis.plot(
                xs / scale,
                point,
                color=colours[label],
                linewidth=1.3 if group[0][0].reference else 1.8,
                linestyle=style,
                marker=marker,
                markersize=5,
                clip_on=len(xs) > 1,
            )
            axis.fill_between(xs / scale, low, high, color=colours[label], alpha=0.18, linewidth=0)
    if several:
        keys = [axis.plot([], [], color='#555555', linestyle=style, linewidth=1.3, label=_title(name))[0] for name, style in styles.items()]
        axis.legend(handles=keys, fontsize=7, handlelength=2.6)
    elif not task and len({len(tasks) for tasks in panel.values()}) > 1:
        counts = ', '.join(f'{label} {len(tasks)}' for label, tasks in panel.items())
        axis.set_title(f'tasks: {counts}', loc='right', fontsize=6, color='#888888', fontweight='normal', y=-0.02)
    _dress(axis, suite, task, own[0].column, x, unit, end / scale)


def _dress(axis: Any, suite: str, task: str, column: str, x: str, unit: str, end: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_xlabel(AXES[x] + unit)
    axis.set_ylabel(_ylabel(suite, task, column))
    axis.set_xlim(0, end or 1)  # an end of 0 is a run with nothing but the evaluation at its start
    for line, count in ((axis.xaxis, 5), (axis.yaxis, 6)):
        line.set_major_locator(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]))
        line.set_major_formatter(FuncFormatter(partial(_tick, line)))
    if not end:
        axis.set_xticks([0])
    if column == 'accuracy':
        axis.set_ylim(0, 100)
    elif suite == 'dmc':
        axis.set_ylim(0, 1000)
    elif suite == 'atari' and not task:
        axis.axhline(1, color='#999999', linewidth=1, linestyle=':', zorder=1)
        axis.annotate('human', (1, 1), xycoords=('axes fraction', 'data'), ha='right', va='bottom', fontsize=8, color='#888888')


def _ylabel(suite: str, task: str, column: str) -> str:
    if column == 'accuracy':
        return 'Accuracy (%)'
    if suite == 'classify':  # of a generator, or another metric: a dataset has no episodes
        return column.replace('_', ' ').capitalize()
    return 'Human-normalised score' if suite == 'atari' and not task else 'Episode return'


def _title(name: str) -> str:
    games = {canonical(game): re.sub(r'(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])', ' ', game) for game in HUMAN}
    known = games.get(canonical(name), {'dmc': 'DeepMind Control', 'procgen': 'ProcGen'}.get(name))
    return known or (name if any(letter.isupper() for letter in name) else name.replace('_', ' ').title())


def _seconds_unit(end: float) -> tuple[float, str]:
    return (3600.0, ' (hours)') if end >= 2 * 3600 else (60.0, ' (minutes)') if end >= 120 else (1.0, ' (seconds)')


def _tick(axis: Any, value: float, _: int | None = None) -> str:
    """A number in the unit of the whole axis: 5k beside 10k, and 0.5M beside 1M."""
    largest = max(map(abs, axis.get_view_interval()))
    bound, letter = next(((bound, letter) for bound, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')) if largest >= max(bound, 1e4)), (1.0, ''))
    text = f'{value / bound:.4g}'.replace('-', '−')
    return text + letter if value else '0'


def _write_table(path: Path, by_task: Mapping[Key, Panel], by_suite: Mapping[Key, Panel], x: str, statistic: str) -> None:
    """Scores at the last x that all runs of a panel have reached."""

    def named(panels: Mapping[Key, Panel]) -> dict[str, Any]:
        """Accuracies say so where the same task has returns as well."""
        twins = {key for key in panels if key[2] and (*key[:2], False) in panels}
        return {'/'.join(filter(None, key[:2])) + ' accuracy' * (key in twins): rows(panel) for key, panel in panels.items()}

    def rows(panel: Panel) -> dict[str, Any]:
        last = min(float(curve.x[-1]) for tasks in panel.values() for runs in tasks for curve in runs)
        table: dict[str, Any] = {}
        for label, tasks in panel.items():
            scores = [np.array([np.interp(last, run.x, run.y) for run in runs]) for runs in tasks]
            band = interval(scores, statistic)
            table[label] = {
                x: last,
                'tasks': len(tasks),
                'seeds': [len(task) for task in scores],
                statistic: float(band.point[0]),
                'low': float(band.low[0]),
                'high': float(band.high[0]),
                'median': float(np.median(np.concatenate(scores))),
            }
        return table

    tables = {
        'tasks': named(by_task),
        'suites': named({key: panel for key, panel in by_suite.items() if key[0] in ('atari', 'dmc') or key[2]}),
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(tables, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog='python -m Benchmarking.Plot', description='Draws learning curves. Patterns are regular expressions of whole names.'
    )
    parser.add_argument('experiments', nargs='*', help='which experiments (all)')
    parser.add_argument('--root', default=ROOT, help='the folder of experiments (%(default)s)')
    parser.add_argument('--out', help='where the figures go (<root>/<first experiment>/Plots)')
    for name in ('agents', 'suites', 'tasks'):
        parser.add_argument(f'--{name}', nargs='+', help=f'which {name} (all)')
    parser.add_argument('--steps', type=int, help='leave out what lies beyond so many agent steps')
    parser.add_argument('--x', default='step', choices=AXES, help='the horizontal axis (%(default)s)')
    parser.add_argument('--phase', default='eval', help='which CSV (%(default)s)')
    parser.add_argument('--metric', help='which column (the score)')
    parser.add_argument('--statistic', default='mean', choices=STATISTICS, help='over seeds and tasks (%(default)s)')
    parser.add_argument('--reference', help='CSV of published curves, by frame; needs --x frame')
    parser.add_argument('--reference_agents', nargs='+', help='which agents of it (all)')
    parser.add_argument('--tabular', action='store_true', help='also write tabular.json')
    options = vars(parser.parse_args(arguments))
    for name in options['experiments']:
        if name.partition('=')[0] in options:
            parser.error(f'{name}: write --{name.replace("=", " ", 1)}')
    try:
        for path in plot(options.pop('experiments') or None, **options):
            print(path)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
