"""Trainer weights to every engine, verified: the only file that knows both sides."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.actor import Actor
from actors.crew import Crew
from actors.waiting import wait_for, wait_for_all, wait_for_start
from rlhaiku.errors import ActorDied, WeightMismatch
from rlhaiku.types import SyncReport


@dataclass(frozen=True, slots=True)
class SentWeights:
    """The trainer's word on what it put into the memory it shares with the engines."""

    weight_version: int
    checksum: int
    num_bytes: int


class SharedMemorySync:
    """The WeightSync of torch trainers: the trainer writes a slot, engines read it; only version numbers are sent.

    Where the slots are, in the node's memory or on its GPU, trainer and engines know. Where engines are on other nodes
    too, relays copy the slot there first.
    """

    def __init__(
        self, trainer: Actor, engines: Crew, published: list[int], timeout_s: float, relays: Sequence[Actor] = (),
        other_ranks: Sequence[Actor] = (),
    ) -> None:  # fmt: skip
        """`published`: kept up to date, so that an engine started later knows what it can read; `relays`: connected.

        `other_ranks`: of the trainer, which needs their parts of the weights.
        """
        self._trainer, self._engines, self._timeout_s = trainer, engines, timeout_s
        self._published, self._relays, self._ranks = published, relays, (trainer, *other_ranks)

    def publish(self, weight_version: int) -> SyncReport:
        """Returns when every engine holds `weight_version` with the trainer's checksum; raises WeightMismatch.

        Raises ActorDied if the trainer or a relay is gone; an engine that is gone is replaced.
        """
        started = time.perf_counter()
        parts = [(rank.handle.send_weights.remote(weight_version), rank) for rank in self._ranks]
        doing = f"to publish its weights as version {weight_version}"
        sent: SentWeights = wait_for_all(parts, self._timeout_s, doing)[0]
        copies = [(relay.handle.pass_on.remote(weight_version), relay) for relay in self._relays]
        wait_for_all(copies, self._timeout_s, f"to pass on weight version {weight_version}")
        self._published.append(weight_version)
        calls = [(engine, _receive(engine, weight_version)) for engine in self._engines.actors]
        for place, (engine, call) in enumerate(calls):
            checksum = self._confirmed(place, engine, call, weight_version)
            if checksum != sent.checksum:
                raise WeightMismatch(
                    f"{engine.name} must hold the trainer's version {weight_version} (checksum {sent.checksum:#010x}); "
                    f"got {checksum:#010x}. Do model.path and the shared memory file match?"
                )
        return SyncReport(weight_version, sent.checksum, sent.num_bytes, time.perf_counter() - started)

    def _confirmed(self, place: int, engine: Actor, call: Any, weight_version: int) -> int:  # noqa: ANN401
        """The checksum an engine reports; one that died is replaced and its successor asked."""
        while True:
            try:
                wait_for_start(engine, self._timeout_s)  # a successor may have to load its model first
                return int(wait_for(call, self._timeout_s, engine, f"to take weight version {weight_version}"))
            except ActorDied as death:
                self._engines.replace(engine, death)
                engine = self._engines.actors[place]
                call = _receive(engine, weight_version)


def _receive(engine: Actor, weight_version: int) -> Any:  # noqa: ANN401  (a Ray reference)
    # In a thread of its own in the engine: a sync never queues behind generation.
    return engine.handle.receive_weights.options(concurrency_group="control").remote(weight_version)
