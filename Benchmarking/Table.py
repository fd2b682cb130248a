"""The CSV files of a run: one row per step, only ever appended, readable at any instant."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from Benchmarking import replacing

SCORES = ('score', 'reward', 'episode_reward', 'accuracy')  # the metric that is a run's score: the first of these that it has


def read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Reads a CSV that may be in the middle of being written.

    Args:
        path: a file of this logger; absent reads as empty.

    Returns:
        The header and the complete rows, as text. Left out: a last line without its newline (the run was killed while writing), and rows of
        another width.
    """
    text = path.read_bytes().decode('utf-8', errors='replace') if path.exists() else ''
    lines = list(csv.reader(io.StringIO(text[: text.rfind('\n') + 1])))
    header = lines[0] if lines else []
    return header, [row for row in lines[1:] if len(row) == len(header)]


class Table:
    """One append-only CSV file with a header and at most one row per step.

    Args:
        path: the file; rows that it holds already are kept.
        columns: the header, if the file is new; columns that a later row brings are added at the end.

    Raises:
        ValueError: the file is something else.
    """

    def __init__(self, path: Path, columns: Sequence[str] = ()) -> None:
        self.path = path
        self.header, rows = read_table(path)
        if self.header and 'step' not in self.header:
            raise ValueError(f'{path} is not the log of a run: it has no column step; move it away')
        self._count(rows)
        if not self.header or not path.read_bytes().endswith(b'\n'):
            self.header = self.header or list(columns)
            self._rewrite(rows)
        self._file = open(path, 'ab', buffering=0)  # noqa: SIM115 - open for the whole run

    def append(self, row: Mapping[str, str]) -> None:
        """Adds one row and hands it to the system. Columns absent from `row` stay blank.

        Raises:
            OSError: the disk did not take the whole row.
        """
        new = [name for name in row if name not in self.header]
        if new:
            _, rows = read_table(self.path)
            self.header += new
            self._rewrite([old + [''] * len(new) for old in rows])
            self._reopen()
        line, size = _line([row.get(name, '') for name in self.header]), os.path.getsize(self.path)
        if self._file.write(line) != len(line):
            self._file.truncate(size)
            raise OSError(f'{self.path}: the disk took only a part of a row (is it full?)')
        self.rows += 1
        self.last_step = int(row['step'])

    def trim(self, step: int | None = None, rows: int | None = None) -> None:
        """Drops rows with a step beyond `step`, and all but the first `rows` rows. The file is left alone when there is nothing to drop."""
        _, kept = read_table(self.path)
        total, at = len(kept), self.header.index('step')
        if step is not None:
            kept = [row for row in kept if int(float(row[at])) <= step]
        kept = kept[:rows]
        if len(kept) < total:
            self._rewrite(kept)
            self._reopen()
            self._count(kept)

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _count(self, rows: list[list[str]]) -> None:
        self.rows = len(rows)
        self.last_step = int(float(rows[-1][self.header.index('step')])) if rows else -1

    def _rewrite(self, rows: list[list[str]]) -> None:
        with replacing(self.path) as temporary, open(temporary, 'wb') as file:
            file.write(b''.join(map(_line, [self.header, *rows])) if self.header else b'')
            file.flush()
            os.fsync(file.fileno())

    def _reopen(self) -> None:
        self._file.close()
        self._file = open(self.path, 'ab', buffering=0)  # noqa: SIM115 - open for the whole run


def _line(cells: Sequence[str]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator='\n').writerow(cells)
    return buffer.getvalue().encode()
