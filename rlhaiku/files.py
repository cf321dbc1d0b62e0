"""Writing files that a crash or a full disk cannot spoil."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhaiku.errors import OutputFailed


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the file system refuses into OutputFailed, which names the file and what to do."""
    try:
        yield
    except OSError as error:
        raise refused(Path(error.filename or path), error.strerror) from error


def refused(path: Path, reason: str | None) -> OutputFailed:
    """What to raise when the file system refuses something, and what to do about it."""
    return OutputFailed(
        f"the run directory must take what the run writes; {path}: {reason}. The last checkpoint is intact: make room "
        "or bring the directory back, then go on with --resume."
    )


def write_whole(path: Path, data: bytes) -> None:
    """Gives a file this content or leaves it as it was, whatever happens meanwhile; raises OutputFailed."""
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        if path.exists() and path.read_bytes() == data:
            return
        partial.write_bytes(data)
        flush(partial)
        partial.replace(path)
        flush(path.parent)


def flush(path: Path) -> None:
    """Forces a file's bytes, or a directory's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(directory: Path) -> None:
    """Forces a directory and everything below it to the disk."""
    for path in [*directory.rglob("*"), directory]:
        flush(path)
