"""A run on a machine that may be taken away: it lives on local disk, and what must survive is on a volume.

Every attempt at a run begins with `RunVolume.open`, which copies back what the volume has; after each checkpoint
`KeptRun.keep` copies the run over and commits. So a first attempt, a retry and one after a preemption are one code.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlhaiku.checkpoints import STATE_FILE
from rlhaiku.errors import BadInput

ATTEMPTS = "attempts.json"
"""On the volume: who worked at the run, one entry per attempt."""


@dataclass(frozen=True, slots=True)
class KeptRun:
    """One run, on local disk and on the volume."""

    local: Path
    remote: Path
    commit: Callable[[], None]

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return any(self.local.glob(f"checkpoints/step-*/{STATE_FILE}"))

    def keep(self) -> None:
        """Copies complete checkpoints and the run's files to the volume and commits it.

        Files and checkpoints appear whole or not at all. Databases stay behind: copying one that is in use would tear
        it; what of them must survive is written into the checkpoint.
        """
        for file in self.local.rglob("*"):
            inside = file.relative_to(self.local)
            if file.is_file() and inside.parts[0] != "checkpoints" and ".sqlite" not in file.name:
                _copy(file, self.remote / inside)
        ours, kept = self.local / "checkpoints", self.remote / "checkpoints"
        complete = {state.parent.name for state in ours.glob(f"step-*/{STATE_FILE}")}
        for name in sorted(complete - {path.name for path in kept.glob("step-*")}):
            _copy(ours / name, kept / name)
        for old in kept.glob("step-*"):
            if old.name not in complete:
                shutil.rmtree(old)
        self.commit()


@dataclass(frozen=True, slots=True)
class RunVolume:
    """The volume that keeps runs."""

    root: Path
    """Its mount path."""
    local: Path
    """Where runs live while they run."""
    commit: Callable[[], None]
    """Makes what was written last."""

    def open(self, name: str, call_id: str, resume: bool) -> KeptRun:
        """The run to work at, copied back to local disk as far as the volume has it.

        `name`: empty for a new one, or with `resume` for the newest. `call_id`: the same for all attempts at one call,
        so an attempt that follows another goes on, and a new call does not touch another's run unless `resume`.
        """
        remote = self._of_call(call_id) or self._chosen(name, resume)
        local = self.local / remote.name
        shutil.rmtree(local, ignore_errors=True)  # of an earlier attempt on the same machine, perhaps after its commit
        if remote.exists():
            shutil.copytree(remote, local, ignore=shutil.ignore_patterns(ATTEMPTS, ".*"))
        remote.mkdir(parents=True, exist_ok=True)
        attempts = [*_attempts(remote), {"call": call_id, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}]
        (remote / ATTEMPTS).write_text(json.dumps(attempts, indent=1))
        self.commit()
        return KeptRun(local, remote, self.commit)

    def _of_call(self, call_id: str) -> Path | None:
        """The run that an earlier attempt of this call worked at."""
        runs = [path.parent for path in self.root.glob(f"*/{ATTEMPTS}")]
        return next((run for run in runs if _attempts(run)[-1]["call"] == call_id), None)

    def _chosen(self, name: str, resume: bool) -> Path:
        if resume:
            states = list(self.root.glob(f"{name or '*'}/checkpoints/step-*/{STATE_FILE}"))
            if not states:
                remedy = "Start it without --resume."
                raise BadInput("--resume needs a run with a complete checkpoint on the volume", name, remedy)
            return max(states, key=lambda state: state.stat().st_mtime).parents[2]
        chosen = self.root / (name or time.strftime("run-%Y%m%d-%H%M%S"))
        if chosen.exists():
            raise BadInput("--run must not name a run that is there", name, "Add --resume, or choose a new name.")
        return chosen


def _attempts(run: Path) -> list[dict[str, str]]:
    attempts: list[dict[str, str]] = json.loads(path.read_text()) if (path := run / ATTEMPTS).is_file() else []
    return attempts


def _copy(source: Path, target: Path) -> None:
    """Copies a file or a directory under a temporary name, then renames."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    if source.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
    else:
        shutil.copyfile(source, partial)
    partial.replace(target)
