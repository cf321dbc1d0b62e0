"""The only place that waits for Ray, always with a deadline, always able to say who waited for whom."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from rlhaiku.errors import ActorDied, ActorFailed, RlhaikuError, WaitTimeout
from rlhaiku.events import RoleEvent


def wait_for(ref: Any, timeout_s: float, who: str) -> Any:  # noqa: ANN401  (whatever the actor returned)
    """The value of a Ray reference, or of each in a list.

    Raises WaitTimeout after `timeout_s` seconds, ActorDied when the actor is gone, ActorFailed when it raised something
    that is not ours; our own errors pass through.
    """
    try:
        return ray.get(ref, timeout=timeout_s)
    except GetTimeoutError:
        raise WaitTimeout(f"{who} must answer within {timeout_s:g} s; it did not. See its log, or raise "
                          "cluster.wait_timeout_s.") from None
    except RayTaskError as error:
        if isinstance(error.cause, RlhaikuError):
            raise error.cause from None
        raise ActorFailed(f"{who} raised:\n{error}") from None
    except RayActorError as error:
        raise ActorDied(f"{who} died: {error}") from None


@dataclass(frozen=True, slots=True)
class _Pending:
    who: str
    then: Callable[[Any], RoleEvent]
    on_death: Callable[[ActorDied], None] | None


class RayEvents:
    """The coordinator's event source: every outstanding Ray call, and the event that its result becomes."""

    def __init__(self, timeout_s: float) -> None:
        """`timeout_s`: longest silence of everybody before `next` gives up."""
        self._timeout_s = timeout_s
        self._pending: dict[Any, _Pending] = {}
        self._delivered: deque[RoleEvent] = deque()
        self._pauses: list[Callable[[], bool]] = []

    def expect(
        self,
        ref: Any,  # noqa: ANN401  (a Ray reference)
        who: str,
        then: Callable[[Any], RoleEvent],
        on_death: Callable[[ActorDied], None] | None = None,
    ) -> None:
        """Waits for one more call; `then` turns its result into an event and may start further calls.

        `on_death` is told when the actor died, and gives its work to another; without it the death ends the run.
        """
        self._pending[ref] = _Pending(who, then, on_death)

    def deliver(self, event: RoleEvent) -> None:
        """Adds an outcome that no Ray call was needed for."""
        self._delivered.append(event)

    def pause_while(self, paused: Callable[[], bool]) -> None:
        """Stops the clock of `next` while `paused` says so, e.g. while a judge is away."""
        self._pauses.append(paused)

    def next(self, waiting_for: str) -> RoleEvent:
        """The next result, as an event."""
        while not self._delivered:
            ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=self._timeout_s)
            if ready:
                self._settle(ready[0])
            elif not any(paused() for paused in self._pauses):
                outstanding = ", ".join(sorted({pending.who for pending in self._pending.values()})) or "nobody"
                raise WaitTimeout(f"{waiting_for} must arrive within {self._timeout_s:g} s; outstanding: {outstanding}"
                                  ". See the actors' logs, or raise cluster.wait_timeout_s.")
        return self._delivered.popleft()

    def _settle(self, ref: Any) -> None:  # noqa: ANN401
        pending = self._pending.pop(ref)
        try:
            value = wait_for(ref, self._timeout_s, pending.who)
        except ActorDied as death:
            if pending.on_death is None:
                raise
            pending.on_death(death)
        else:
            self._delivered.append(pending.then(value))
