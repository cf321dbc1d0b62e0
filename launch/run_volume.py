"""A run on a machine that may be taken away: it lives on local disk, and what must survive is on a volume.

Every attempt begins with `RunVolume.open`, which copies back what there is to go on from; after each checkpoint
`KeptRun.keep` copies the run over and commits. So a first attempt, a retry and one after a preemption are one code.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlhaiku.checkpoints import STATE_FILE, CheckpointStore
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
        return bool(complete_checkpoints(self.local))

    def keep(self) -> None:
        """Copies the run's files, then its complete checkpoints, to the volume and commits it.

        In this order: a resume cuts what is newer than its checkpoint, and could not make up for what is missing.
        Files and checkpoints appear whole or not at all. Databases stay behind: copying one that is in use would tear
        it; what of them must survive is written into the checkpoint.
        """
        for file in self.local.rglob("*"):
            inside = file.relative_to(self.local)
            if file.is_file() and inside.parts[0] != "checkpoints" and ".sqlite" not in file.name:
                _copy(file, self.remote / inside)
        ours, kept = self.local / "checkpoints", self.remote / "checkpoints"
        complete = {path.name for path in complete_checkpoints(self.local)}
        for name in sorted(complete - {path.name for path in kept.glob("step-*")}):
            _copy(ours / name, kept / name)
        for old in kept.glob("step-*"):
            if old.name not in complete and len(complete) > 1:  # an attempt begins with the newest one alone
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

    def earlier(self, name: str, call_id: str, resume: bool) -> Path | None:
        """The run on the volume that this call goes on with, None if it begins one. Changes nothing, on any rank.

        `name`: with `resume`, empty for the newest one. `call_id`: the same for all attempts at one call. Raises
        BadInput if `resume` finds no complete checkpoint.
        """
        runs = [path.parent for path in self.root.glob(f"*/{ATTEMPTS}")]
        of_call = next((run for run in runs if _attempts(run)[-1]["call"] == call_id), None)
        return of_call or (self._newest(name) if resume else None)

    def new(self, name: str) -> Path:
        """Where a run that is not there yet will be; raises BadInput if it is, so no call touches another's run."""
        chosen = self.root / (name or time.strftime("run-%Y%m%d-%H%M%S"))
        if chosen.parent != self.root or name.startswith("."):
            raise BadInput("--run is a name, not a path", name, "For example --run first.")
        if chosen.exists():
            raise BadInput("--run must not name a run that is there", name, "Add --resume, or choose a new name.")
        return chosen

    def open(self, remote: Path, call_id: str) -> KeptRun:
        """The run to work at: on local disk, what its newest complete checkpoint on the volume goes on with.

        Without such a checkpoint the run begins anew, whatever an attempt that was cut off has left on the volume.
        """
        local = self.local / remote.name
        shutil.rmtree(local, ignore_errors=True)  # of an earlier attempt on the same machine, perhaps after its commit
        if complete := complete_checkpoints(remote):
            shutil.copytree(remote, local, ignore=shutil.ignore_patterns(ATTEMPTS, ".*", "checkpoints"))
            _copy_newest_intact(complete, local / "checkpoints")
        remote.mkdir(parents=True, exist_ok=True)
        attempts = [*_attempts(remote), {"call": call_id, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}]
        (remote / ATTEMPTS).write_text(json.dumps(attempts, indent=1))
        self.commit()
        return KeptRun(local, remote, self.commit)

    def _newest(self, name: str) -> Path:
        states = list(self.root.glob(f"{name or '*'}/checkpoints/step-*/{STATE_FILE}"))
        if not states:
            remedy = "Start it without --resume."
            raise BadInput("--resume needs a run with a complete checkpoint on the volume", name, remedy)
        return max(states, key=lambda state: state.stat().st_mtime).parents[2]


def complete_checkpoints(run: Path) -> list[Path]:
    """Of a run's directory, oldest first."""
    return sorted(state.parent for state in run.glob(f"checkpoints/step-*/{STATE_FILE}"))


def _copy_newest_intact(complete: list[Path], to: Path) -> None:
    """Only if the newest one turns out to be damaged, one more is needed; it is then renamed on the volume too."""
    for checkpoint in reversed(complete):
        shutil.copytree(checkpoint, to / checkpoint.name)
        found, problems = CheckpointStore(to, keep_last=2).newest_intact()
        if found:
            return
        print(f"not gone on from: {problems[0]}", flush=True)
        checkpoint.rename(checkpoint.with_name(f"unusable-{checkpoint.name}"))


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
