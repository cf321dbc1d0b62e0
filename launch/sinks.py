"""Where a run's numbers go besides its own files: TensorBoard and Weights & Biases, by the names in metric_names.py."""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from launch.console import make_console
from rlhaiku.checkpoints import RunState
from rlhaiku.config import RunConfig
from rlhaiku.metrics import Reporter, StepReport, evaluation_metrics
from rlhaiku.types import ScoredGroup

WANDB_PROJECT = "rlhaiku"
"""Where `wandb` without a project goes; WANDB_PROJECT and WANDB_RUN_GROUP in the environment say otherwise."""
FINISH_S = 60.0
"""How long a run that is over waits for W&B to take what is left."""


class Log(Protocol):
    """Takes one row of numbers at a time."""

    def write(self, row: Mapping[str, float], step: int) -> None:
        """Stores the numbers under their names; steps never fall."""

    def close(self) -> None:
        """Everything written is safe afterwards."""


class SinkReporter:
    """The Reporter that hands a run's rows to a log."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def step(self, report: StepReport) -> None:
        """The numbers of `step_metrics`."""
        self._write(report.metrics)

    def evaluation(self, state: RunState, groups: Sequence[ScoredGroup]) -> None:
        """The numbers of `evaluation_metrics`."""
        self._write(evaluation_metrics(state, groups))

    def _write(self, row: Mapping[str, float]) -> None:
        named = dict(row)
        self._log.write(named, int(named.pop("step")))


class TensorBoardLog:
    """Event files in the run directory's `tensorboard/`."""

    def __init__(self, directory: Path, resumed_step: int) -> None:
        """What was written after `resumed_step` is declared void: those steps are made again."""
        from torch.utils.tensorboard import SummaryWriter

        # From the beginning, the evaluation before the first step is made again too.
        purge_step = resumed_step + 1 if resumed_step else 0
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=purge_step)

    def write(self, row: Mapping[str, float], step: int) -> None:
        """One scalar a name; on disk at once, so that a running TensorBoard sees it."""
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Ends the event file."""
        self._writer.close()


class WandbLog:
    """One W&B run for each attempt, those of a run directory under one name; the key stays in the environment."""

    def __init__(self, config: RunConfig, directory: Path, resumed_step: int, project_and_group: str) -> None:
        import wandb

        project, _, group = project_and_group.partition("/")
        name = directory.resolve().name
        self._run = wandb.init(
            project=project or os.environ.get("WANDB_PROJECT", WANDB_PROJECT),
            group=group or os.environ.get("WANDB_RUN_GROUP", Path(config.model.path).name),
            name=f"{name} from step {resumed_step}" if resumed_step else name,
            dir=str(directory),
            config=config.model_dump(),
        )

    def write(self, row: Mapping[str, float], step: int) -> None:
        """One history row a step; an evaluation joins the row of its step."""
        self._run.log(dict(row), step=step)

    def close(self) -> None:
        """Waits for the upload, if there is one, but not for ever; what is left of it stays in the run directory."""
        upload = threading.Thread(target=self._run.finish, name="wandb", daemon=True)
        upload.start()
        upload.join(FINISH_S)
        if upload.is_alive():
            kept = Path(self._run.dir).parent
            said = f"W&B did not take the last numbers within {FINISH_S:g} s; send them with: wandb sync {kept}"
            make_console().print(said, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def open_sinks(config: RunConfig, directory: Path, resumed_step: int) -> Iterator[tuple[Reporter, ...]]:
    """The Reporters of `output.sinks`, closed with the context."""
    logs: list[Log] = []
    try:
        for sink in config.output.sinks:
            if sink == "tensorboard":
                logs.append(TensorBoardLog(directory, resumed_step))
            else:
                logs.append(WandbLog(config, directory, resumed_step, sink.removeprefix("wandb").removeprefix(":")))
        yield tuple(map(SinkReporter, logs))
    finally:
        for log in logs:
            log.close()
