import csv
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from Benchmarking.ClassScores import predictions
from Benchmarking.Report import MISTAKES, report
from Benchmarking.ReportPictures import NAMED

ALL = ['classes.csv', 'confusion.png', 'classes.png', 'mistakes.png']


@pytest.fixture
def figures(monkeypatch):
    """The figures made, by what the first word of their title says. They are drawn, and nothing may warn meanwhile."""
    from matplotlib.figure import Figure

    made, save = {}, Figure.savefig

    def keep(figure, file, **options):
        title = figure.texts[0].get_text() if figure.texts else 'curves'
        made[title.split()[0]] = figure
        save(figure, file, **options)

    monkeypatch.setattr(Figure, 'savefig', keep)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield made


def numbered(index, channels=1):
    """An image that tells its index."""
    return np.full((channels, 4, 6), index % 251, np.uint8)


def certain(predicted, classes, score=3.0):
    """Logits that predict what is given."""
    return (score * np.eye(classes)[np.asarray(predicted)]).astype(np.float32)


def write(folder, labels, logits, names=None, read=numbered, step=12000):
    names = [f'c{number}' for number in range(logits.shape[1])] if names is None else names
    return report(folder, labels=np.asarray(labels), logits=logits, classes=names, read=read, step=step)


def table(folder):
    with open(folder / 'classes.csv', newline='', encoding='utf-8') as file:
        *rows, last = csv.DictReader(file)
    return rows, last


def column(rows, name):
    return [float(row[name]) for row in rows]


def drawn(figure):
    """The percents of the confusion as an array, NaN where a row is grey."""
    return np.ma.filled(figure.axes[0].images[0].get_array().astype(float), np.nan)


def written(axis):
    return {tuple(map(round, text.get_position()))[::-1]: text.get_text() for text in axis.texts}


@pytest.fixture
def texts(monkeypatch):
    """All that was written: figure, text, and its box in pixels (x0, y0, x1, y1)."""
    from matplotlib.text import Text

    drawn, draw = [], Text.draw

    def keep(text, renderer):
        if text.get_text():
            drawn.append((text.get_figure(), text.get_text(), text.get_window_extent(renderer).extents))
        draw(text, renderer)

    monkeypatch.setattr(Text, 'draw', keep)
    return drawn


# --- numbers


def test_a_case_worked_by_hand(tmp_path):
    labels, predicted = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 0]
    write(tmp_path, labels, certain(predicted, 4), ['cat', 'dog', 'eel', 'fox'])
    rows, last = table(tmp_path)
    assert [row['name'] for row in rows] == ['cat', 'dog', 'eel', 'fox']
    assert column(rows, 'samples') == [3, 2, 1, 0]
    assert column(rows, 'precision') == pytest.approx([2 / 3, 2 / 3, 0, 0])
    assert column(rows, 'recall') == pytest.approx([2 / 3, 1, 0, 0])
    assert column(rows, 'f1') == pytest.approx([2 / 3, 4 / 5, 0, 0])
    assert [row['accuracy'] for row in rows] == [row['recall'] for row in rows[:3]] + ['']  # a fox was neither seen nor predicted
    assert (last['name'], last['samples']) == ('all', '6')
    means = [float(last[name]) for name in ('precision', 'recall', 'f1', 'accuracy')]
    assert means == pytest.approx([4 / 9, 5 / 9, (2 / 3 + 4 / 5) / 3, 4 / 6])  # over three classes


@pytest.mark.parametrize('classes, samples', [(2, 50), (10, 2000), (50, 60), (200, 3000), (1000, 500)])
def test_scores_are_those_of_sklearn(tmp_path, figures, classes, samples):
    rng = np.random.default_rng(classes)
    labels = rng.integers(classes, size=samples)
    logits = rng.normal(size=(samples, classes)).astype(np.float32)
    logits[np.arange(samples), labels] += 2
    write(tmp_path, labels, logits)
    rows, last = table(tmp_path)
    predicted = logits.argmax(1)
    options = {'zero_division': 0.0}
    *scores, support = precision_recall_fscore_support(labels, predicted, labels=range(classes), **options)
    for name, expected in zip(('precision', 'recall', 'f1'), scores, strict=True):
        assert column(rows, name) == pytest.approx(expected, abs=1e-8)
    assert column(rows, 'samples') == support.tolist()
    macro = precision_recall_fscore_support(labels, predicted, average='macro', **options)[:3]
    assert [float(last[name]) for name in ('precision', 'recall', 'f1')] == pytest.approx(macro, abs=1e-8)
    assert float(last['accuracy']) == pytest.approx(accuracy_score(labels, predicted), abs=1e-8)
    if classes <= 200:
        with np.errstate(invalid='ignore'):
            counts = confusion_matrix(labels, predicted, labels=range(classes))
            expected = 100 * counts / counts.sum(1, keepdims=True)
        assert drawn(figures['Confusion']) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize('dtype', [np.int64, np.int32, np.uint8])
def test_small_integers_as_labels_do_not_overflow(tmp_path, figures, dtype):
    labels = np.arange(200).astype(dtype)
    write(tmp_path, labels, certain(np.arange(200), 200))
    assert (drawn(figures['Confusion']) == 100 * np.eye(200)).all()


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_probabilities_are_the_softmax(dtype):
    logits = (10 * np.random.default_rng(0).normal(size=(200, 7))).astype(dtype)
    predicted, others = predictions(logits)
    exact = np.exp(logits.astype(np.longdouble))
    exact /= exact.sum(1, keepdims=True)
    assert (predicted == exact.argmax(1)).all()
    assert 1 / (1 + others) == pytest.approx(exact.max(1).astype(float), rel=1e-12)


def test_of_equal_logits_the_first_is_predicted_and_large_ones_do_not_overflow():
    predicted, others = predictions(np.array([[1, 1, 1], [0, 5, 5], [1e30, -1e30, 1e30], [-9e4, -9e4, -9e5]], np.float32))
    assert predicted.tolist() == [0, 1, 0, 0] and others.tolist() == pytest.approx([2, 1 + np.exp(-5), 1, 1])


def test_logits_are_read_in_chunks(monkeypatch):
    logits = np.random.default_rng(0).normal(size=(103, 5))
    whole = predictions(logits)
    monkeypatch.setattr('Benchmarking.ClassScores.CHUNK_NUMBERS', 50)
    for one, other in zip(predictions(logits), whole, strict=True):
        assert (one == other).all()


# --- confusion.png


def test_cells_say_percents_and_counts(tmp_path, figures):
    labels, predicted = [0] * 8 + [1] * 4000, [0] * 6 + [1] * 2 + [0] + [1] * 3999
    write(tmp_path, labels, certain(predicted, 3), ['a', 'b', 'c'])
    axis = figures['Confusion'].axes[0]
    assert written(axis) == {(0, 0): '75.0%\n6', (0, 1): '25.0%\n2', (1, 0): '<0.1%\n1', (1, 1): '>99.9%\n3,999'}
    assert np.isnan(drawn(figures['Confusion'])[2]).all()
    assert (axis.get_ylabel(), axis.get_xlabel()) == ('True class', 'Predicted class')
    title, note = (text.get_text() for text in figures['Confusion'].texts)
    assert title == 'Confusion at step 12,000' and note == '4,005 of 4,008 samples right (99.93%); classes without samples, grey: 1'


@pytest.mark.parametrize('classes', [NAMED, NAMED + 1])
def test_classes_are_named_as_long_as_there_is_room(tmp_path, figures, classes):
    write(tmp_path, np.arange(classes), certain(np.arange(classes), classes))
    axis = figures['Confusion'].axes[0]
    labels = [text.get_text() for text in axis.get_yticklabels() if text.get_text()]
    if classes <= NAMED:
        assert labels == [f'c{number}' for number in range(classes)] == [text.get_text() for text in axis.get_xticklabels()]
    else:
        assert '10' in labels and len(labels) < 15 and axis.get_ylabel() == 'True class (number)'


def test_a_thousand_classes_leave_no_single_mistake_invisible(tmp_path, figures):
    labels = np.arange(1000).repeat(2)
    predicted = labels.copy()
    predicted[600] = 700  # one of the two samples of class 300
    write(tmp_path, labels, certain(predicted, 1000))
    shares = drawn(figures['Confusion'])
    assert (shares[299:302, 699:702] == 50).all()  # three pixels wide
    assert shares[300, 300] == 50 and (shares[np.arange(1000), np.arange(1000)] >= 50).all()
    assert (shares[300:, :200] == 0).all()


def test_beyond_a_thousand_neighbours_share_a_row(tmp_path, figures):
    labels = np.array([0, 1, 2, 2998, 2999])
    write(tmp_path, labels, certain([2, 0, 2, 2, 2999], 3000))
    shares = drawn(figures['Confusion'])
    assert shares.shape == (1000, 1000) and shares[0, 0] == 100
    assert shares[999, 0] == shares[999, 999] == 50 and np.isnan(shares[1:999]).all()
    assert '3 classes' in figures['Confusion'].axes[0].get_xlabel()


# --- mistakes.png


def test_the_worst_mistakes_come_first_with_their_probability(tmp_path, figures):
    odds = np.array([3.0, 9.0, 1.5, 4.0, 9.0])  # of class 1 against class 0, where the last is right
    logits = np.stack([np.zeros(5), np.log(odds)], 1)
    write(tmp_path, [0, 0, 0, 0, 1], logits, ['cat', 'dog'])
    axis = figures['Worst'].axes[0]
    captions = ['cat → dog  90.0%', 'cat → dog  80.0%', 'cat → dog  75.0%', 'cat → dog  60.0%']  # odds 9, 4, 3, 1.5
    assert [text.get_text() for text in axis.texts] == captions
    assert [int(image.get_array()[0, 0, 0]) for image in axis.images] == [1, 3, 0, 2]
    assert figures['Worst'].texts[1].get_text().startswith('4 of 4 in 5 samples')


def test_certain_mistakes_are_told_apart_and_equal_ones_stay_in_order(tmp_path, figures):
    logits = np.zeros((100, 2))
    logits[:, 1] = np.where(np.arange(100) % 4, 45, 50)  # p is 1 in float64 for all of them
    write(tmp_path, np.zeros(100, int), logits)
    shown = [int(image.get_array()[0, 0, 0]) for image in figures['Worst'].axes[0].images]
    assert shown == [*range(0, 100, 4), *[number for number in range(100) if number % 4][:11]]


def test_only_the_images_that_are_drawn_are_read(tmp_path, figures):
    asked = []

    def read(index):
        asked.append(index)
        return numbered(index)

    logits = np.stack([np.zeros(100), np.linspace(1, 5, 100)], 1)
    write(tmp_path, np.zeros(100, int), logits, read=read)
    assert asked == list(range(99, 99 - MISTAKES, -1)) and len(figures['Worst'].axes[0].images) == MISTAKES == 36


@pytest.mark.parametrize('channels, shown', [(1, [0, 0, 0]), (3, [0, 1, 2]), (4, [3, 3, 3]), (9, [6, 7, 8])])
def test_images_are_drawn_whole_in_their_proportions(tmp_path, figures, channels, shown):
    def read(index):
        return np.arange(channels, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(6, 2)

    write(tmp_path, [0], certain([1], 2), read=read)
    (image,) = figures['Worst'].axes[0].images
    assert image.get_array().shape == (4, 6, 3) and image.get_array()[0, 0].tolist() == shown
    left, right, bottom, top = image.get_extent()
    box = image.get_window_extent()
    assert (right - left) / (bottom - top) == pytest.approx(1.5) and box.width / box.height == pytest.approx(1.5)


def test_when_all_is_right_the_picture_says_so(tmp_path, figures):
    write(tmp_path, [0], certain([1], 2))
    before = (tmp_path / 'mistakes.png').read_bytes()
    assert [path.name for path in write(tmp_path, [1, 0], certain([1, 0], 2), step=13000)] == ALL
    assert [text.get_text() for text in figures['Worst'].texts] == ['Worst mistakes at step 13,000', 'no mistake in 2 samples']
    assert (tmp_path / 'mistakes.png').read_bytes() != before


def test_vectors_have_no_picture_and_nothing_else_is_touched(tmp_path):
    (tmp_path / 'mistakes.png').write_bytes(b'of an earlier step')
    paths = write(tmp_path, [0, 1], certain([1, 1], 2), read=lambda index: np.zeros(5, np.float32))
    assert paths == [tmp_path / name for name in ALL[:3]]
    assert (tmp_path / 'mistakes.png').read_bytes() == b'of an earlier step'


# --- files and pictures


@pytest.mark.parametrize('samples, classes, expected', [(1, 1, ALL), (1, 3, ALL), (60, 50, ALL), (60, 51, [ALL[0], ALL[1], ALL[3]])])
def test_which_files_there_are(tmp_path, figures, samples, classes, expected):
    rng = np.random.default_rng(0)
    folder = tmp_path / 'reports' / '12000'
    paths = write(folder, rng.integers(classes, size=samples), rng.normal(size=(samples, classes)))
    assert paths == [folder / name for name in expected]
    assert sorted(path.name for path in folder.iterdir()) == sorted(expected)  # and no temporary one


def test_classes_have_their_numbers_beside_the_points(tmp_path, figures):
    write(tmp_path, [0, 0, 0, 1, 1, 2], certain([0, 0, 1, 1, 1, 0], 4), ['cat', 'dog', 'eel', 'fox'])
    axis = figures['Classes'].axes[0]
    cells = [text.get_text() for text in axis.texts]
    assert cells[0::6] == ['Samples', 'Precision', 'Recall', 'F1']
    assert cells[1:6] == ['3', '2', '1', '0', '6']
    assert cells[7:12] == ['66.7', '66.7', '–', '–', '44.4']
    assert cells[13:18] == ['66.7', '100.0', '0.0', '–', '55.6']
    assert cells[19:24] == ['66.7', '80.0', '0.0', '–', '48.9']
    points = {line.get_label(): dict(zip(line.get_ydata(), line.get_xdata(), strict=True)) for line in axis.lines}
    assert points['Recall'] == pytest.approx({0: 200 / 3, 1: 100, 2: 0, 4: 500 / 9})


LONG = 'WWWW a name of a class that goes on and on, as those of some data sets do, variant'
NAMES = ['Größe', '東京', '🐈', '$x_{$', r'\frac', f'{LONG} A', f'{LONG} B', 'crane', 'crane', '', 'two\nlines', 'بط', 'a,b;"c"', '\udce9t\udce9']


def test_any_name_is_drawn_and_kept_in_the_table(tmp_path, figures):
    labels = np.arange(len(NAMES)).repeat(3)
    write(tmp_path, labels, certain(np.roll(labels, 1), len(NAMES)), NAMES)
    rows, _ = table(tmp_path)
    assert [row['name'] for row in rows[:-1]] == NAMES[:-1] and rows[-1]['name'] == '\\udce9t\\udce9'  # what UTF-8 cannot hold is spelled out
    shown = [text.get_text() for text in figures['Confusion'].axes[0].get_yticklabels()]
    assert shown[:5] == ['Größe', '#1', '#2', '$x_{$', r'\frac'] and shown[7:] == ['crane #7', 'crane #8', '#9', 'two lines', 'بط', 'a,b;"c"', '#13']
    assert all(name.startswith('WWWW') and '…' in name for name in shown[5:7]) and (shown[5][-1], shown[6][-1]) == ('A', 'B')
    captions = [text.get_text() for text in figures['Worst'].axes[0].texts]
    assert any('crane #7' in caption for caption in captions)


@pytest.mark.parametrize('classes', [1, 2, 3, 10, 12, 13, 25, 26, 40, 41, 50, 200])
@pytest.mark.parametrize('long', [False, True])
def test_nothing_written_is_cut_off_or_runs_into_another(tmp_path, figures, texts, classes, long):
    rng = np.random.default_rng(0)
    names = [f'{LONG} {number}' if long else str(number) for number in range(classes)]
    labels = rng.integers(max(1, classes - 1), size=100 * classes)  # the last class has no samples
    predicted = np.where(rng.uniform(size=len(labels)) < 0.6, labels, rng.integers(classes, size=len(labels)))
    write(tmp_path, labels, certain(predicted, classes), names, step=123_456_789)
    for figure in figures.values():
        words, boxes = zip(*((text, box) for of, text, box in texts if of is figure), strict=True)
        boxes = np.array(boxes)
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= figure.bbox.size).all()
        first, second = np.triu_indices(len(boxes), 1)
        overlap = np.minimum(boxes[first, 2:], boxes[second, 2:]) - np.maximum(boxes[first, :2], boxes[second, :2])
        assert [(words[first[pair]], words[second[pair]]) for pair in np.flatnonzero((overlap > 1.5).all(1))] == []  # pixels; boxes have a margin


def test_a_failed_drawing_leaves_the_older_files(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    write(tmp_path, [0, 1], certain([1, 1], 2))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(figure, file, **options):
        Path(file).write_bytes(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(Figure, 'savefig', fail)
    with pytest.raises(OSError, match='disk full'):
        write(tmp_path, [0, 1], certain([1, 1], 2))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_state_of_matplotlib_stays_as_it_was(tmp_path):
    before = dict(matplotlib.rcParams)
    write(tmp_path, [0, 1], certain([1, 1], 2))
    assert dict(matplotlib.rcParams) == before
    code = (
        'import sys, numpy as np; from Benchmarking.Report import report\n'
        'assert "matplotlib" not in sys.modules\n'
        'report(sys.argv[1], labels=np.array([0]), logits=np.array([[0.0, 1]]), classes="ab", read=lambda i: np.zeros((1, 4, 4), np.uint8), step=0)\n'
        'assert "matplotlib.pyplot" not in sys.modules'
    )
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path)], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize(
    'labels, logits, said',
    [
        ([0, 1], np.array([[0, np.nan], [0, 1]]), 'logits of 1 of 2 samples hold NaN or infinity (first: sample 0)'),
        ([0, 1], np.array([[0, 1], [np.inf, 1]]), 'first: sample 1'),
        ([0, 2], np.zeros((2, 2)), 'labels from 0 to 2: expected 0 to 1'),
        ([0, -1], np.zeros((2, 2)), 'labels from -1 to 0'),
        ([0, 1], np.zeros((2, 3)), 'logits of shape (2, 3)'),
        ([0, 1, 1], np.zeros((2, 2)), '3 labels'),
        ([0, 1], np.zeros((2, 2), int), 'int64'),
        ([0.0, 1.0], np.zeros((2, 2)), 'float64'),
        ([[0], [1]], np.zeros((2, 2)), 'labels of shape (2, 1)'),
        (np.zeros(0, int), np.zeros((0, 2)), 'N of 1 or more'),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, labels, logits, said):
    with pytest.raises(ValueError, match='expected') as caught:
        write(tmp_path / 'report', labels, logits, ['a', 'b'])
    assert said in str(caught.value) and '\n' not in str(caught.value)
    assert not (tmp_path / 'report').exists()


def test_an_image_that_is_none_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match='expected'):
        write(tmp_path / 'report', [0], certain([1], 2), read=lambda index: np.zeros((4, 4), np.uint8))
    assert not (tmp_path / 'report').exists()
