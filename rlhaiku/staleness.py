"""How far rollouts may run ahead of training; `max_staleness=0` *is* the synchronous run."""

from collections.abc import Iterable

from rlhaiku.types import ScoredGroup


class StalenessBuffer:
    """Scored groups waiting for their step.

    Claim c belongs to step c // groups_per_step, so a step trains the next groups in claim order whatever order they
    finish in. While step s is prepared, groups of steps up to s + max_staleness may be claimed: with one weight version
    per step, no trained completion is then more than `max_staleness` versions behind.
    """

    def __init__(self, groups_per_step: int, max_staleness: int, first_step: int = 0) -> None:
        """`first_step`: the step a resumed run trains first; all claims before it are made and done."""
        self._groups_per_step = groups_per_step
        self._max_staleness = max_staleness
        self._waiting: dict[int, ScoredGroup] = {}
        self._next_claim = self._num_taken = first_step * groups_per_step

    def claims_due(self, step: int, last_step: int) -> list[range]:
        """The claims to make before `step` is trained, one range per step; they count as made."""
        due = []
        while self._next_claim < self._groups_per_step * (min(step + self._max_staleness, last_step) + 1):
            due.append(range(self._next_claim, self._next_claim + self._groups_per_step))
            self._next_claim += self._groups_per_step
        return due

    def put(self, groups: Iterable[ScoredGroup]) -> None:
        """Keeps scored groups until their step takes them."""
        self._waiting |= {scored.key.claim: scored for scored in groups}

    def is_ready(self, step: int) -> bool:
        """Whether every group of the step is here."""
        return all(claim in self._waiting for claim in self._claims_of(step))

    def is_settled(self) -> bool:
        """Whether every group asked for is here or taken, so that nothing is in flight."""
        return self._num_taken + len(self._waiting) == self._next_claim

    def take(self, step: int) -> tuple[ScoredGroup, ...]:
        """Removes and returns the step's groups, in claim order."""
        self._num_taken += self._groups_per_step
        return tuple(self._waiting.pop(claim) for claim in self._claims_of(step))

    def _claims_of(self, step: int) -> range:
        return range(step * self._groups_per_step, (step + 1) * self._groups_per_step)
