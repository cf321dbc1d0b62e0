"""Checkpoints that are either complete or absent: written under a temporary name, flushed, then renamed."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from rlhaiku.errors import RunFailed
from rlhaiku.files import flush, flush_tree, writing
from rlhaiku.ledger import LEDGER_FILE, Ledger

STATE_FILE = "coordinator.json"
NO_SPACE_BYTES = 1 << 20
"""Less than this free, and a failed write has filled the disk."""


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run stands between two steps; with the trainer's own state this is all that a resume needs."""

    step: int = 0
    """Train steps done. Random draws and the prompt order derive from the seed and counters, so no RNG is stored."""
    weight_version: int = 0
    """Version of the trainer's weights, i.e. weight syncs since the run began."""


class CheckpointStore:
    """The directory `checkpoints/` of a run: `step-NNNNNN/` after that many train steps."""

    def __init__(
        self, root: Path, keep_last: int, ledger: Ledger | None = None, on_saved: Callable[[], None] = lambda: None
    ) -> None:
        """With a ledger, each checkpoint holds a copy of it, and steps older than all checkpoints lose their tokens.

        `on_saved`: told after each checkpoint, e.g. to copy it to where it outlives this machine.
        """
        self._root = root
        self._keep_last = keep_last
        self._ledger = ledger
        self._on_saved = on_saved

    def save(self, state: RunState, write_trainer: Callable[[Path], None]) -> Path:
        """Lets the trainer write into a temporary directory, completes it atomically, forgets the oldest.

        Raises OutputFailed; the older checkpoints are then intact.
        """
        final = self._root / f"step-{state.step:06d}"
        partial = self._root / f".{final.name}.partial"
        with writing(partial):
            for stale in (partial, final):  # `final`: left by an attempt that a resume went back behind
                shutil.rmtree(stale, ignore_errors=True)
            try:
                self._fill(partial, state, write_trainer)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)  # on a full disk it would be in the next one's way
                raise
            partial.rename(final)
            flush(self._root)
            for old in self.complete()[: -self._keep_last]:
                shutil.rmtree(old)
        if self._ledger:
            self._ledger.prune(read_state(self.complete()[0]).step)
        self._on_saved()
        return final

    def _fill(self, partial: Path, state: RunState, write_trainer: Callable[[Path], None]) -> None:
        """Makes the directory and everything in it, on the disk when this returns."""
        partial.mkdir(parents=True)
        _write(partial, write_trainer)
        if self._ledger:
            self._ledger.backup(partial / LEDGER_FILE)
        (partial / STATE_FILE).write_text(json.dumps({"state": asdict(state), "files": _digests(partial)}))
        flush_tree(partial)

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(path.parent for path in self._root.glob(f"step-*/{STATE_FILE}"))

    def newest_intact(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint whose files are as they were written, and what is wrong with each newer one.

        What is unusable is renamed, so that it is neither resumed from nor counted as kept. Raises OutputFailed.
        """
        problems: list[str] = []
        for path in reversed(self.complete()):
            problem = _problem(path)
            if not problem:
                return path, problems
            with writing(path):
                path.rename(_aside(path))
            problems.append(f"{path}: {problem}")
        return None, problems


def read_state(checkpoint: Path) -> RunState:
    """The coordinator's part of a checkpoint."""
    return RunState(**json.loads((checkpoint / STATE_FILE).read_text())["state"])


def _write(directory: Path, write_trainer: Callable[[Path], None]) -> None:
    """A library that meets a full disk says anything but that; so look."""
    try:
        write_trainer(directory)
    except RunFailed as error:
        if shutil.disk_usage(directory).free < NO_SPACE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory)) from error
        raise


def _digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below a directory, by relative path."""
    digests = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digests[str(path.relative_to(directory))] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _aside(checkpoint: Path) -> Path:
    """A free name for what is unusable; the same step may have been damaged before."""
    first = aside = checkpoint.with_name(f"unusable-{checkpoint.name}")
    for number in count(2):
        if not aside.exists():
            break
        aside = first.with_name(f"{first.name}.{number}")
    return aside


def _problem(checkpoint: Path) -> str:
    """What is wrong with a checkpoint's files; empty if nothing is."""
    try:
        written: dict[str, str] = json.loads((checkpoint / STATE_FILE).read_text())["files"]
        read_state(checkpoint)
        found = _digests(checkpoint)
    except (ValueError, KeyError, TypeError):
        return f"{STATE_FILE} is unreadable"
    except OSError as error:  # a bad sector is damage like any other
        return f"{error.filename or checkpoint}: {error.strerror}"
    changed = sorted(name for name, digest in written.items() if found.get(name) != digest)
    return f"{changed[0]} is missing or was changed after it was written" if changed else ""
