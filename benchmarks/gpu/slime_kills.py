"""Runs of the bundled model in which engines are killed, for `slime_first_contact`."""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu.slime_first_contact import ENGINE_MEMORY, GAP, SMALL, Found, _config, _log, _metrics, _quick


def run_with_kills(
    overrides: Sequence[str], kill_after: int | None = None, kill_in_update: int | None = None
) -> Found:
    """Ten steps through `launch.local.run`; an engine is killed once, after a step or in the update to a version."""
    from launch import start_slime
    from launch.local import run

    casts: list[Any] = []
    start = start_slime.start_slime_actors
    options = start_slime.SlimeOptions(engine_memory=ENGINE_MEMORY, sglang_flags=_quick())

    @contextmanager
    def watched(*arguments: Any, **keywords: Any) -> Iterator[Any]:  # noqa: ANN401
        with start(*arguments, **keywords, options=options) as cast:
            casts.append(cast)
            yield cast

    start_slime.start_slime_actors = watched
    with tempfile.TemporaryDirectory() as name:
        directory, killed = Path(name) / "run", Path(name) / "killed"
        if kill_in_update is not None:
            trainer = start_slime.trainer_class()
            start_slime.trainer_class = lambda: _killing_trainer(trainer, kill_in_update, killed)
        if kill_after is not None:
            about = (directory, kill_after, casts, killed)
            threading.Thread(target=_kill_engine_after, args=about, daemon=True).start()
        settings = [*SMALL, "num_steps=10", "output.save_interval=2", "evaluation.num_prompts=16", *overrides]
        result = run(_config(settings), output_dir=directory)
        rows = _metrics(directory)
        found = {"recoveries": result.recoveries, "steps": len(rows), "starts": len(casts),
                 "rollout_s": [round(row["time/rollout_s"], 2) for row in rows],
                 "sync_s": [round(row["time/sync_s"], 2) for row in rows]}
        _log(found)
        assert result.finished and len(rows) == 10
        assert killed.exists(), "nobody was killed"
        assert any("rollout engine" in who for who, _ in result.recoveries) or len(casts) > 1, "nobody took its place"
        assert max(row["train/logprob_gap"] for row in rows) < GAP
        return found


def _killing_trainer(trainer: type, in_update: int, killed: Path) -> type:
    """A trainer whose first engine is killed once, by rank 0, when slime has paused it for the update to a version."""

    class Killing(trainer):  # type: ignore[misc]
        def push_weights(self, weight_version: int) -> None:
            import ray

            updater = self.weight_updater
            if weight_version >= in_update and self.args.rank == 0 and not killed.exists():
                send = updater._update_bucket_weights_from_distributed

                def sending(*arguments: Any, **keywords: Any) -> None:  # noqa: ANN401
                    killed.touch()
                    engine = updater.rollout_engines[0]
                    os.kill(ray.get(engine.__ray_call__.remote(lambda _: os.getpid()), timeout=30), signal.SIGKILL)
                    send(*arguments, **keywords)  # takes the lock, and broadcasts to the dead

                updater._update_bucket_weights_from_distributed = sending
            super().push_weights(weight_version)

    return Killing


def _kill_engine_after(directory: Path, steps: int, casts: list[Any], killed: Path) -> None:
    while not casts or len(_metrics(directory)) < steps:
        time.sleep(0.05)
    process = casts[0].actors()[0].process()
    assert process is not None
    print("killing the engine", process, flush=True)
    os.kill(process.pid, signal.SIGKILL)
    killed.touch()
