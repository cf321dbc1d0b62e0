"""Trainer weights to every engine of the node, verified: the only file that knows both sides."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.waiting import wait_for
from rlhaiku.errors import WeightMismatch
from rlhaiku.types import SyncReport


@dataclass(frozen=True, slots=True)
class SentWeights:
    """The trainer's word on what it put into shared memory."""

    weight_version: int
    checksum: int
    num_bytes: int


class SharedMemorySync:
    """The WeightSync of one node: the trainer writes a slot, engines map it; only version numbers are sent."""

    def __init__(self, trainer: Any, engines: Sequence[Any], timeout_s: float) -> None:  # noqa: ANN401  (Ray handles)
        self._trainer, self._engines, self._timeout_s = trainer, engines, timeout_s

    def publish(self, weight_version: int) -> SyncReport:
        """Returns when every engine holds `weight_version` with the trainer's checksum; raises WeightMismatch."""
        started = time.perf_counter()
        sent: SentWeights = wait_for(
            self._trainer.send_weights.remote(weight_version), self._timeout_s, "the trainer, asked for its weights"
        )
        # In a thread of its own in the engine: a sync never queues behind generation.
        calls = [
            engine.receive_weights.options(concurrency_group="control").remote(weight_version)
            for engine in self._engines
        ]
        received = wait_for(calls, self._timeout_s, f"the engines, asked to take weight version {weight_version}")
        for index, checksum in enumerate(received):
            if checksum != sent.checksum:
                raise WeightMismatch(
                    f"engine {index} must hold the trainer's version {weight_version} (checksum {sent.checksum:#010x})"
                    f"; got {checksum:#010x}. Do model.path and the shared memory file match?"
                )
        return SyncReport(weight_version, sent.checksum, sent.num_bytes, time.perf_counter() - started)
