"""The only place that waits for Ray, always with a deadline, always able to say who waited for whom."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from rlhaiku.errors import ActorFailed, RlhaikuError, WaitTimeout
from rlhaiku.events import RoleEvent


def wait_for(ref: Any, timeout_s: float, who: str) -> Any:  # noqa: ANN401  (whatever the actor returned)
    """The value of a Ray reference, or of each in a list.

    Raises WaitTimeout after `timeout_s` seconds, ActorFailed when the actor died or raised something that is not ours.
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
        raise ActorFailed(f"{who} died: {error}") from None


@dataclass(frozen=True, slots=True)
class _Pending:
    who: str
    then: Callable[[Any], RoleEvent]


class RayEvents:
    """The coordinator's event source: every outstanding Ray call, and the event that its result becomes."""

    def __init__(self, timeout_s: float) -> None:
        """`timeout_s`: longest silence of everybody before `next` gives up."""
        self._timeout_s = timeout_s
        self._pending: dict[Any, _Pending] = {}

    def expect(self, ref: Any, who: str, then: Callable[[Any], RoleEvent]) -> None:  # noqa: ANN401
        """Waits for one more call; `then` turns its result into an event and may start further calls."""
        self._pending[ref] = _Pending(who, then)

    def next(self, waiting_for: str) -> RoleEvent:
        """The next result, as an event."""
        ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=self._timeout_s)
        if not ready:
            outstanding = ", ".join(sorted({pending.who for pending in self._pending.values()})) or "nobody"
            raise WaitTimeout(f"{waiting_for} must arrive within {self._timeout_s:g} s; outstanding: {outstanding}. "
                              "See the actors' logs, or raise cluster.wait_timeout_s.")
        pending = self._pending.pop(ready[0])
        return pending.then(wait_for(ready[0], self._timeout_s, pending.who))
