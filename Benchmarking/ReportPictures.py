"""The pictures of a classifier's report: its confusion, the scores of its classes, its worst mistakes."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from Benchmarking import replacing
from Benchmarking.ClassScores import Scores, confusion
from Benchmarking.Plot import PALETTE, STYLE

COUNTED, NUMBERED, NAMED = 12, 25, 40  # classes up to which the confusion has counts, percents and names
DRAWN = 1000  # rows of the confusion: beyond this, neighbouring classes share one
SPREAD = 400  # rows beyond which a cell is less than three pixels
NARROWEST = 4.6  # inches, for the title
NO_SAMPLES = '#d9d9d9'
TEXT = STYLE | {'axes.grid': False, 'text.parse_math': False}  # a $ in the name of a class is a $


@contextmanager
def figure_of(path: Path) -> Iterator[Any]:
    """A figure that becomes the file when the block succeeds. Uses no global state of matplotlib and no display."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(TEXT):
        figure = Figure(dpi=150)
        yield figure
        with replacing(path) as temporary:
            figure.savefig(temporary, format='png')


def _axes(figure: Any, title: str, note: str, *, width: float, height: float, left: float, right: float, below: float, above: float = 0.6) -> Any:
    """Axes of `width` × `height` inches with so much room around them, which makes the size of the figure; above are a title and a note."""
    spare = max(0, NARROWEST - left - width - right) / 2
    full, tall = left + width + right + 2 * spare, below + height + above
    figure.set_size_inches(full, tall)
    for text, down, style in ((title, 0.1, {'fontsize': 11, 'fontweight': 'bold'}), (note, 0.32, {'fontsize': 8, 'color': '#555555'})):
        figure.text(0.5, 1 - down / tall, text, ha='center', va='top', **style)
    return figure.add_axes(((left + spare) / full, below / tall, width / full, height / tall))


def draw_confusion(figure: Any, labels: np.ndarray, predicted: np.ndarray, names: Sequence[str], scores: Scores, step: int) -> None:
    """Rows add up to 100%. The colours follow the root of the share, so that a share of 1% can be seen."""
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    group = -(-len(names) // DRAWN)
    counts = confusion(labels // group, predicted // group, -(-len(names) // group))
    samples, size = counts.sum(1, keepdims=True), len(counts)
    shares = np.divide(100 * counts, samples, out=np.full(counts.shape, np.nan), where=samples > 0)
    named = _fitting(names, 110, 8) if size <= NAMED else []
    widest = max((_width(name, 8) for name in named), default=24) / 72  # inches
    side = 7.6 if not named else float(np.clip((0.5 if size <= COUNTED else 0.36) * size, 3, 11))
    upright = bool(named) and widest > 0.85 * side / size
    empty = int((scores.samples == 0).sum())
    axis = _axes(
        figure,
        f'Confusion at step {step:,}',
        _summary(scores) + (f'; classes without samples, grey: {empty:,}' if empty else ''),
        width=side,
        height=side,
        left=0.5 + widest,
        right=0.85,
        below=0.45 + (widest if upright else 0.15),
    )
    colours = LinearSegmentedColormap.from_list('shares', ['#ffffff', PALETTE[0], '#00263f']).with_extremes(bad=NO_SAMPLES)
    image = axis.imshow(_visible(shares), cmap=colours, norm=PowerNorm(0.5, 0, 100), interpolation='nearest')
    if named:
        _name_classes(axis, named, upright)
    else:
        _number_classes(axis, group)
    if size <= NUMBERED:
        _write_shares(axis, counts, shares)
    ticks = [0, 1, 5, 10, 25, 50, 75, 100]
    bar = figure.colorbar(image, cax=axis.inset_axes((1 + 0.15 / side, 0, 0.18 / side, 1)), ticks=ticks, format=lambda value, _: f'{value:.0f}%')
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)


def _visible(shares: np.ndarray) -> np.ndarray:
    """Where cells are about a pixel, those that are not empty spread to empty neighbours."""
    if len(shares) <= SPREAD:
        return shares
    from scipy.ndimage import maximum_filter  # type: ignore[import-untyped,unused-ignore]

    return np.where(shares == 0, maximum_filter(np.nan_to_num(shares), 3, mode='constant'), shares)


def _name_classes(axis: Any, names: Sequence[str], upright: bool) -> None:
    places = np.arange(len(names))
    axis.set_xticks(places, names, fontsize=8, rotation=90 if upright else 0)
    axis.set_yticks(places, names, fontsize=8)
    axis.set_xticks(places[1:] - 0.5, minor=True)
    axis.set_yticks(places[1:] - 0.5, minor=True)
    axis.grid(which='minor', color='#ffffff', linewidth=0.8)
    axis.tick_params(which='both', length=0)
    axis.set_xlabel('Predicted class')
    axis.set_ylabel('True class')


def _number_classes(axis: Any, group: int) -> None:
    """Some of the numbers of the classes, from 0 as in `classes.csv`."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for line, name in ((axis.xaxis, 'Predicted'), (axis.yaxis, 'True')):
        line.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
        line.set_major_formatter(FuncFormatter(lambda place, _: f'{place * group:.0f}'))
        line.set_label_text(f'{name} class (number' + (f'; {group} classes are drawn as one)' if group > 1 else ')'))
    axis.tick_params(labelsize=8)


def _write_shares(axis: Any, counts: np.ndarray, shares: np.ndarray) -> None:
    """Percents in the cells that are not empty, below them counts where there is room."""
    few = len(counts) <= COUNTED
    for row, column in np.argwhere(counts):
        share = shares[row, column]
        if few:
            text = f'{_percent(share / 100)}\n{counts[row, column]:,}'
        else:
            text = '<1' if share < 1 else f'{np.floor(share):.0f}'  # 100 is all of them
        axis.text(column, row, text, ha='center', va='center', fontsize=7, color='#ffffff' if share > 15 else '#333333')


def draw_classes(figure: Any, names: Sequence[str], scores: Scores, step: int) -> None:
    """A row per class: its scores as points, and beside them as numbers; the last row has the means."""
    kinds = {  # what: values, where they are not 0/0, marker and its size
        'Precision': (scores.precision, scores.predicted > 0, 'o', 8),
        'Recall': (scores.recall, scores.samples > 0, 's', 6.5),
        'F1': (scores.f1, scores.present, 'D', 3.5),
    }
    shown, places = [*_fitting(names, 150, 9), 'all'], np.arange(len(names) + 1)
    wide, high, column = 3.6, 0.25 * len(shown) + 0.15, 0.75  # inches
    axis = _axes(
        figure,
        f'Classes at step {step:,}',
        _summary(scores) + '; all: mean over classes',
        width=wide,
        height=high,
        left=0.24 + max(0.25, max(_width(name, 9) for name in shown) / 72),
        right=4 * column + 0.4,
        below=0.8,
        above=0.8,
    )
    across = axis.get_yaxis_transform()
    columns = {'Samples': [f'{number:,}' for number in (*scores.samples, scores.samples.sum())]}
    lowest = 1.0
    for (name, (values, known, marker, size)), colour in zip(kinds.items(), PALETTE, strict=False):
        values, known = np.append(values, values[scores.present].mean()), np.append(known, True)
        style = {'color': colour, 'markersize': size, 'markerfacecolor': colour if marker == 'D' else 'none', 'markeredgewidth': 1.6}
        axis.plot(100 * values[known], places[known], marker, label=name, clip_on=False, **style)
        lowest = min(lowest, values[known].min())
        columns[name] = [f'{100 * value:.1f}' if there else '–' for value, there in zip(values, known, strict=True)]
    for number, (name, cells) in enumerate(columns.items(), start=1):
        right = 1 + (0.2 + number * column) / wide
        axis.text(right, -0.7, name, ha='right', va='bottom', fontsize=9, color='#333333', fontweight='bold', transform=across)
        for place, cell in zip(places, cells, strict=True):
            axis.text(right, place, cell, ha='right', va='center_baseline', fontsize=9, color='#333333', transform=across)
    axis.axhline(len(names) - 0.5, color='#888888', linewidth=0.8)
    axis.set_xlim(min(90, max(0, 10 * np.floor(10 * lowest - 0.2))), 100)
    axis.set_ylim(len(names) + 0.6, -0.6)
    axis.set_yticks(places, shown, fontsize=9)
    axis.tick_params(axis='y', length=0, pad=8)  # beyond the points at 0
    axis.grid(visible=True)
    axis.xaxis.set_major_formatter(lambda value, _: f'{value:g}%')
    axis.spines['left'].set_visible(False)
    axis.legend(loc='upper center', bbox_to_anchor=(0.5, -0.28 / high), ncols=3, fontsize=9, handletextpad=0.2)


def draw_mistakes(figure: Any, images: Sequence[np.ndarray], captions: Sequence[tuple[str, str, float]], mistakes: int, samples: int, step: int) -> None:
    """A grid of images in one pair of axes (which is faster than many), a unit wide each. `captions` are true class, predicted class, probability."""
    columns = max(1, min(6, int(np.ceil(np.sqrt(len(images))))))
    cell = 1.5  # inches
    texts = [_caption(*caption, 72 * (cell - 0.14)) for caption in captions]
    rows, height = -(-len(images) // columns), 1 + (0.28 if any('\n' in text for text in texts) else 0.16) / cell
    note = f'{len(images)} of {mistakes:,} in {_samples(samples)}: true → predicted, its probability' if mistakes else f'no mistake in {_samples(samples)}'
    tall = max(rows * height, 0.01)
    axis = _axes(figure, f'Worst mistakes at step {step:,}', note, width=columns * cell, height=tall * cell, left=0.05, right=0.05, below=0.1)
    for number, (image, text) in enumerate(zip(images, texts, strict=True)):
        across, down = number % columns + 0.5, number // columns * height + 0.5
        half = 0.46 * np.array(image.shape[1::-1]) / max(image.shape[:2])  # of the width and the height
        axis.imshow(image, extent=(across - half[0], across + half[0], down + half[1], down - half[1]), interpolation='nearest')
        axis.text(across, down + 0.48, text, ha='center', va='top', fontsize=7.5, color='#333333', linespacing=1.1)
    axis.set_xlim(0, columns)
    axis.set_ylim(tall, 0)
    axis.set_axis_off()


def _caption(true: str, predicted: str, share: float, room: float) -> str:
    """One line where it fits into `room` points, else two."""
    percent = _percent(share)
    text = f'{true} → {predicted}  {percent}'
    if _width(text, 7.5) <= room:
        return text
    return f'{_fit(true, room - _width(" →", 7.5), 7.5)} →\n{_fit(predicted, room - _width("  " + percent, 7.5), 7.5)}  {percent}'


def _percent(share: float) -> str:
    """100% and 0% are all and nothing."""
    if share in (0, 1):
        return f'{100 * share:.0f}%'
    return f'{100 * share:.1f}%' if 0.0005 <= share < 0.9995 else '<0.1%' if share < 0.5 else '>99.9%'


def _summary(scores: Scores) -> str:
    return f'{scores.right.sum():,} of {_samples(int(scores.samples.sum()))} right ({100 * scores.accuracy:.2f}%)'


def _samples(number: int) -> str:
    return f'{number:,} sample' + 's' * (number > 1)


def drawable(classes: Sequence[str]) -> list[str]:
    """Names in one line, those that occur twice with the number of the class; the number alone where the font lacks a letter or nothing is left."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    letters = get_font(findfont(FontProperties())).get_charmap()
    names = [' '.join(name.split()) for name in classes]
    names = [name if all(ord(letter) in letters for letter in name) else '' for name in names]
    often = Counter(names)
    return [name if name and often[name] == 1 else f'{name} #{number}'.lstrip() for number, name in enumerate(names)]


def _fitting(names: Sequence[str], room: float, size: float) -> list[str]:
    """Names of at most so many points; those that end up the same get the number of the class."""
    shown = [_fit(name, room, size) for name in names]
    return [_fit(name, room - 24, size) + f' #{number}' if shown.count(name) > 1 else name for number, name in enumerate(shown)]


def _fit(name: str, room: float, size: float) -> str:
    """The name, or as much of its beginning and end as `room` points hold."""
    if _width(name, size) <= room:
        return name
    shortened = lambda kept: name[: kept - kept // 2] + '…' + name[len(name) - kept // 2 :]
    return shortened(max(0, bisect_right(range(len(name)), room, key=lambda kept: _width(shortened(kept), size)) - 1))


def _width(text: str, size: float) -> float:
    """Points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return float(text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0])
