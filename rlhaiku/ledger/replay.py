"""Rollouts that earlier attempts finished, given back instead of drawn again."""

from collections.abc import Callable, Sequence

from rlhaiku.events import GroupsGenerated, GroupsScored, RoleEvent
from rlhaiku.ledger.store import Ledger
from rlhaiku.roles import Rollouts
from rlhaiku.types import GroupRequest


class ReplayingRollouts:
    """The Rollouts of a run with a ledger: asks the ledger first, then the engines for what is missing.

    Engines finish whole tiles and the ledger records them whole, so what is missing is whole tiles too, and is drawn to
    the same bits as before.
    """

    def __init__(
        self, rollouts: Rollouts, ledger: Ledger, deliver: Callable[[RoleEvent], None], max_staleness: int = 0
    ) -> None:
        """`deliver` puts an outcome where the coordinator takes its events."""
        self._rollouts, self._ledger, self._deliver = rollouts, ledger, deliver
        self._max_staleness = max_staleness
        self.replayed = 0
        """Groups given back so far."""

    def submit(self, requests: Sequence[GroupRequest]) -> None:
        """Answers from the ledger at once what it has; queues the rest."""
        if requests[0].key.is_eval:
            self._rollouts.submit(requests)
            return
        recalled = self._ledger.recall(requests, self._max_staleness)
        if recalled.scored:
            self._deliver(GroupsScored(recalled.scored))
        if recalled.generated:
            self._deliver(GroupsGenerated(recalled.generated))
        self.replayed += len(recalled.scored) + len(recalled.generated)
        if recalled.missing:
            self._rollouts.submit(recalled.missing)
