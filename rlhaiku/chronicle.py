"""What has happened in a run, told to sinks and reporters while others work.

Writing the ledger, the metrics and the console takes some milliseconds a step. Told at once, engines and trainer would
stand still for it; told a moment later, while the coordinator waits for them anyway, it is out of their way.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Self

from rlhaiku.checkpoints import RunState
from rlhaiku.events import GroupEvent
from rlhaiku.metrics import Reporter, StepReport
from rlhaiku.roles import EventSink
from rlhaiku.types import ScoredGroup


class Chronicle:
    """Keeps what is said of a run until it is told, in the order in which it happened; as a context, to the end."""

    def __init__(self, sinks: Sequence[EventSink], reporters: Sequence[Reporter]) -> None:
        self._sinks, self._reporters = sinks, reporters
        self._untold: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.tell()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"What happened before it could not be told: {failure}")

    def event(self, event: GroupEvent) -> None:
        """Something happened to groups."""
        self._untold.extend(partial(sink.record, event) for sink in self._sinks)

    def step(self, report: StepReport) -> None:
        """A train step is done and its weights are synced."""
        self._untold.extend(partial(reporter.step, report) for reporter in self._reporters)

    def evaluation(self, state: RunState, groups: Sequence[ScoredGroup]) -> None:
        """The held-out prompts were answered with the weights of `state`."""
        self._untold.extend(partial(reporter.evaluation, state, groups) for reporter in self._reporters)

    def tell(self) -> None:
        """Tells everything so far; what a sink or reporter raises ends the telling and the run."""
        untold, self._untold = self._untold, []
        for each in untold:
            each()
