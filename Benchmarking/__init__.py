"""What a run writes down and how it is looked at: Logger, Video, Plot, Statistics. Runs themselves live in `<experiment>/` beside these files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder and renames it to `path` when the block succeeds: readers see the old file or the whole new one.

    Args:
        path: where the file shall end; its folder is created.

    Yields:
        The path to write to. After an error it is removed and `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
