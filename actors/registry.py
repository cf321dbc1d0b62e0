"""Who the engines are, for slime's trainers: they take this actor for slime's RolloutManager and call back into it.

During a weight update every trainer rank asks here, while whoever started the update waits for the ranks. So nothing
here may ever wait, and all ranks must get one answer: if half of them saw an engine replaced and connected to it, the
other half would wait for them in a collective.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rlhaiku.errors import RunFailed

EngineAnswer = tuple[list[Any], Any, int, list[int], list[int], list[dict[str, int]]]
"""Engine handles, the lock's handle, how many of them are new, and each one's GPU count, first GPU and parallelism."""


class Registry:
    """The four methods of slime's trainers, and what our side tells it.

    Every rank asks once per update, so an answer is kept until `num_ranks` ranks have it; what changes meanwhile counts
    from the next update.
    """

    def __init__(self, num_ranks: int, gpus_per_engine: int = 1) -> None:
        """`num_ranks`: trainer ranks; engines stand on consecutive GPUs, in the order of their places."""
        self._num_ranks, self._gpus_per_engine = num_ranks, gpus_per_engine
        self._engines: list[Any] = []
        self._new: set[int] = set()
        self._lock: Any = None
        self._parallel_config: dict[str, int] | None = None
        self._answer: EngineAnswer | None = None
        self._new_in_answer: set[int] = set()
        self._told = 0

    def set_engines(self, engines: Sequence[Any], lock: Any) -> None:  # noqa: ANN401  (Ray handles)
        """All engines, by place, none of them connected yet: at the start, and when the trainers were started anew."""
        self._engines, self._lock = list(engines), lock
        self._new = set(range(len(engines)))
        self._answer, self._told = None, 0

    def replace_engine(self, place: int, engine: Any) -> None:  # noqa: ANN401
        """A successor in a dead engine's place; the trainers connect to all engines again at the next update."""
        self._engines[place] = engine
        self._new.add(place)
        self._new_in_answer.discard(place)  # who is in an answer under way is the dead one

    def train_parallel_config(self) -> dict[str, int]:
        """`dp_size`, `cp_size`, `vpp_size` and more, as rank 0 reported them; raises RunFailed before it has."""
        if self._parallel_config is None:
            raise RunFailed("trainer rank 0 reports its parallelism when it is given this registry; it has not yet")
        return self._parallel_config

    def set_train_parallel_config(self, config: Mapping[str, int]) -> None:
        """Called by rank 0, once."""
        self._parallel_config = dict(config)

    def get_updatable_engines_and_lock(self) -> EngineAnswer:
        """Called by every rank in every weight update."""
        if self._answer is None:
            self._answer, self._new_in_answer = self._make_answer(), set(self._new)
        answer = self._answer
        self._told += 1
        if self._told == self._num_ranks:
            self._answer, self._told = None, 0
        return answer

    def clear_updatable_num_new_engines(self) -> None:
        """Called by rank 0 when all ranks have connected to the engines of the last answer."""
        self._new -= self._new_in_answer
        self._new_in_answer = set()

    def recover_updatable_engines(self) -> None:
        """Called by rank 0 before an update if slime's fault tolerance is on; who dies is replaced elsewhere."""

    def _make_answer(self) -> EngineAnswer:
        size, count = self._gpus_per_engine, len(self._engines)
        parallel = {"tp_size": size, "pp_size": 1, "ep_size": 1, "moe_dp_size": 1}
        offsets = [place * size for place in range(count)]
        return list(self._engines), self._lock, len(self._new), [size] * count, offsets, [dict(parallel)] * count
