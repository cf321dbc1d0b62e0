"""Checkpoints that are either complete or absent: written under a temporary name, flushed, then renamed."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

STATE_FILE = "coordinator.json"


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run stands between two steps; with the trainer's own state this is all that a resume needs."""

    step: int = 0
    """Train steps done. Random draws and the prompt order derive from the seed and counters, so no RNG is stored."""
    weight_version: int = 0
    """Version of the trainer's weights, i.e. weight syncs since the run began."""


class CheckpointStore:
    """The directory `checkpoints/` of a run: `step-NNNNNN/` after that many train steps."""

    def __init__(self, root: Path, keep_last: int) -> None:
        self._root = root
        self._keep_last = keep_last

    def save(self, state: RunState, write_trainer: Callable[[Path], None]) -> Path:
        """Lets the trainer write into a temporary directory, completes it atomically, forgets the oldest."""
        final = self._root / f"step-{state.step:06d}"
        partial = self._root / f".{final.name}.partial"
        for stale in (partial, final):  # `final` exists when a resumed run saves the step it started from again
            shutil.rmtree(stale, ignore_errors=True)
        partial.mkdir(parents=True)
        write_trainer(partial)
        (partial / STATE_FILE).write_text(json.dumps(asdict(state)))
        _flush_tree(partial)
        partial.rename(final)
        _flush(self._root)
        for old in self.complete()[: -self._keep_last]:
            shutil.rmtree(old)
        return final

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(path.parent for path in self._root.glob(f"step-*/{STATE_FILE}"))


def read_state(checkpoint: Path) -> RunState:
    """The coordinator's part of a checkpoint."""
    return RunState(**json.loads((checkpoint / STATE_FILE).read_text()))


def _flush_tree(directory: Path) -> None:
    for path in [*directory.rglob("*"), directory]:
        _flush(path)


def _flush(path: Path) -> None:
    """Forces a file's bytes, or a directory's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
