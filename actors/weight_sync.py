"""Trainer weights to every engine of the node, verified: the only file that knows both sides."""

import time
from dataclasses import dataclass
from typing import Any

from actors.crew import Crew
from actors.waiting import wait_for
from rlhaiku.errors import ActorDied, WeightMismatch
from rlhaiku.types import SyncReport


@dataclass(frozen=True, slots=True)
class SentWeights:
    """The trainer's word on what it put into shared memory."""

    weight_version: int
    checksum: int
    num_bytes: int


class SharedMemorySync:
    """The WeightSync of one node: the trainer writes a slot, engines map it; only version numbers are sent."""

    def __init__(self, trainer: Any, engines: Crew, published: list[int], timeout_s: float) -> None:  # noqa: ANN401
        """`published`: kept up to date, so that an engine started later knows what it can read."""
        self._trainer, self._engines, self._timeout_s = trainer, engines, timeout_s
        self._published = published

    def publish(self, weight_version: int) -> SyncReport:
        """Returns when every engine holds `weight_version` with the trainer's checksum; raises WeightMismatch."""
        started = time.perf_counter()
        sent: SentWeights = wait_for(
            self._trainer.send_weights.remote(weight_version), self._timeout_s, "the trainer, asked for its weights"
        )
        self._published.append(weight_version)
        calls = [self._call(engine, weight_version) for engine in self._engines.handles]
        for place, call in enumerate(calls):
            checksum = self._confirmed(place, call, weight_version)
            if checksum != sent.checksum:
                raise WeightMismatch(
                    f"{self._engines.name(place)} must hold the trainer's version {weight_version} (checksum "
                    f"{sent.checksum:#010x}); got {checksum:#010x}. Do model.path and the shared memory file match?"
                )
        return SyncReport(weight_version, sent.checksum, sent.num_bytes, time.perf_counter() - started)

    def _call(self, engine: Any, weight_version: int) -> Any:  # noqa: ANN401  (Ray handle and reference)
        # In a thread of its own in the engine: a sync never queues behind generation.
        return engine.receive_weights.options(concurrency_group="control").remote(weight_version)

    def _confirmed(self, place: int, call: Any, weight_version: int) -> int:  # noqa: ANN401
        """The checksum an engine reports; one that died is replaced and its successor asked."""
        while True:
            engine = self._engines.handles[place]
            who = f"{self._engines.name(place)}, asked to take weight version {weight_version}"
            try:
                return int(wait_for(call, self._timeout_s, who))
            except ActorDied as death:
                self._engines.replace(place, engine, death)
                call = self._call(self._engines.handles[place], weight_version)
