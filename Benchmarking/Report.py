"""What a classifier gets right and wrong: the confusion of its classes, their scores, and its worst mistakes."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from Benchmarking import replacing
from Benchmarking.ClassScores import Scores, checked, count, predictions
from Benchmarking.ReportPictures import draw_classes, draw_confusion, draw_mistakes, drawable, figure_of
from Benchmarking.Sheet import rgb

TABLED = 50  # classes up to which classes.png is drawn
MISTAKES = 36  # in the grid of the worst


def report(
    folder: Path | str,
    *,
    labels: np.ndarray,
    logits: np.ndarray,
    classes: Sequence[str],
    read: Callable[[int], np.ndarray],
    step: int,
) -> list[Path]:
    """Writes the report of one evaluation; files of an earlier one are replaced, each as a whole.

    * `confusion.png`: how much of each true class (row) was taken for which class, in percent. A class without samples has a grey row.
    * `classes.csv`: name, samples, precision, recall, f1 and accuracy of every class; the last row, `all`, has the means of precision, recall and f1
      over the classes that have samples or predictions, and the accuracy of all samples. The accuracy of a class is the share of its samples that
      were right: its recall, but blank where it has no samples. The other scores are 0 where they are 0/0.
    * `classes.png`: the same as a picture, for up to 50 classes; what is 0/0 has a dash there.
    * `mistakes.png`: the up to 36 mistakes made with the highest probability. If all is right, it says so. Not written for vectors.

    Pictures shorten long names and write a class as `#<number>` where the font lacks a letter of its name; the CSV has all names whole.

    Args:
        folder: where the files go; it is created.
        labels: (N,) integers, 0 to K − 1.
        logits: (N, K) float, any finite scores; their softmax is the probability. The highest is the prediction, of equal ones the first.
        classes: K names.
        read: gives image i as (C, H, W) uint8, shown as in `Sheet.sheet`, or a vector (D,). Called for what is drawn only.
        step: agent steps so far, for the titles.

    Returns:
        The files written.

    Raises:
        ValueError: shapes that do not fit, no samples, labels outside the classes, or NaN or infinity in the logits.
    """
    labels, logits = checked(labels, logits, classes)
    folder, classes = Path(folder), [str(name) for name in classes]
    predicted, others = predictions(logits)
    scores = count(labels, predicted, len(classes))
    mistakes = np.flatnonzero(predicted != labels)
    worst = mistakes[np.argsort(others[mistakes], kind='stable')][:MISTAKES]
    images = [np.asarray(read(int(number))) for number in (worst if len(worst) else [0])]
    pictures = None if images[0].ndim == 1 else [rgb(image[None])[0] for image in images[: len(worst)]]

    written = [folder / 'classes.csv', folder / 'confusion.png']
    _write_table(written[0], classes, scores)
    names = drawable(classes)
    with figure_of(written[1]) as figure:
        draw_confusion(figure, labels, predicted, names, scores, step)
    if len(classes) <= TABLED:
        written.append(folder / 'classes.png')
        with figure_of(written[-1]) as figure:
            draw_classes(figure, names, scores, step)
    if pictures is not None:
        captions = [(names[labels[number]], names[predicted[number]], 1 / (1 + others[number])) for number in worst]
        written.append(folder / 'mistakes.png')
        with figure_of(written[-1]) as figure:
            draw_mistakes(figure, pictures, captions, len(mistakes), len(labels), step)
    return written


def _write_table(path: Path, classes: Sequence[str], scores: Scores) -> None:
    means = [values[scores.present].mean() for values in (scores.precision, scores.recall, scores.f1)]
    columns = zip(classes, scores.samples, scores.precision, scores.recall, scores.f1, strict=True)
    rows = [[name, samples, *shares, shares[1] if samples else None] for name, samples, *shares in columns]
    rows.append(['all', scores.samples.sum(), *means, scores.accuracy])
    with replacing(path) as temporary, open(temporary, 'w', newline='', encoding='utf-8', errors='backslashreplace') as file:  # names of broken files
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(['name', 'samples', 'precision', 'recall', 'f1', 'accuracy'])
        writer.writerows([name, samples, *('' if share is None else f'{share:.9g}' for share in shares)] for name, samples, *shares in rows)
