"""Weights for engines on other nodes or cards than the trainer's: one relay on each that has engines.

    trainer ──writes──► slots ◄──reads── relay 0 ══ gloo ══► relay 1 ──writes──► slots ◄──map── engines
                       (node 0)                                                (node 1)

Between the cards of one node it is the same with NCCL, and slots that are opened over CUDA IPC on their own card.
A relay passes bytes on and knows nothing of models. Whether they arrived, the engines' checksums say, as on the
trainer's own node. One that dies ends the attempt: its engines cannot get what comes next.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo, Store, TCPStore  # type: ignore[attr-defined]

from actors.actor import Actor
from actors.waiting import wait_for, wait_for_all
from actors.weight_slots import DeviceWeightSlots, Shapes, shared_directory
from rlhaiku.errors import ActorDied, ActorFailed

CLOSE_S = 20.0


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where relays find each other, and what they hold."""

    host: str
    """Address of the trainer's node."""
    port: int
    num_bytes: int
    """Of all slots together."""
    shapes: Shapes = field(default_factory=dict)
    """Of the parameters in a slot, for slots on GPUs: engines take them from there."""


class WeightRelay:
    """Holds the weight slots of its node. Rank 0 is on the trainer's node, where the slots are the trainer's own."""

    def __init__(self, num_slots: int, timeout_s: float, trainer_file: Path | None = None) -> None:
        """`trainer_file`: what the trainer's `WeightSlots` maps, on its node; `timeout_s`: longest wait for others."""
        torch.set_num_threads(1)
        self._num_slots, self._timeout = num_slots, timedelta(seconds=timeout_s)
        self._held = ExitStack()
        self._file = trainer_file or Path(self._held.enter_context(shared_directory())) / "weights"
        self._address = ray.util.get_node_ip_address()
        self._store: TCPStore | None = None

    def file(self) -> Path:
        """What engines of this node map."""
        return self._file

    def open(self) -> Meeting:
        """On rank 0, once the trainer is up: where the others are to come."""
        self._store = TCPStore(self._address, 0, is_master=True, wait_for_workers=False, timeout=self._timeout)
        return self._meeting(self._address, self._store.port)

    def join(self, meeting: Meeting, rank: int, num_relays: int) -> None:
        """Returns when all have joined; raises ActorDied if somebody does not."""
        with self._needing_others("to join"):
            store = self._store or TCPStore(meeting.host, meeting.port, wait_for_workers=False, timeout=self._timeout)
            self._group = self._join(store, rank, num_relays)
        self._slots = self._hold(meeting)

    def pass_on(self, weight_version: int) -> None:
        """Every relay at once: rank 0's bytes of a version into everybody's slot; raises ActorDied if one is gone."""
        with self._needing_others(f"to pass on weight version {weight_version}"):
            slot = self._slots[weight_version % self._num_slots]
            self._group.broadcast(slot, 0).wait(self._timeout)

    def close(self) -> None:
        """Gives the memory back once nobody maps it."""
        self._held.close()

    def _meeting(self, host: str, port: int) -> Meeting:
        return Meeting(host, port, self._file.stat().st_size)

    def _hold(self, meeting: Meeting) -> Tensor:
        """[slots, bytes] the memory of this place."""
        flat = torch.from_file(str(self._file), shared=True, size=meeting.num_bytes, dtype=torch.uint8)
        return flat.view(self._num_slots, -1)

    def _join(self, store: Store, rank: int, num_relays: int) -> Any:  # noqa: ANN401  (a process group)
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = self._timeout
        # The address that Ray knows: gloo would take the host name's, which others may not reach.
        options._devices = [ProcessGroupGloo.create_device(hostname=self._address)]
        return ProcessGroupGloo(store, rank, num_relays, options)

    @contextmanager
    def _needing_others(self, doing: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            said = str(error).partition("\n")[0]
            raise ActorDied(f"the weight relay at {self._address} needs those of all nodes {doing}: {said}") from None


class DeviceWeightRelay(WeightRelay):
    """Holds the weight slots of its card. Rank 0 is on the trainer's, where it opens the trainer's own."""

    def pass_on(self, weight_version: int) -> None:
        """Every relay at once: rank 0's bytes of a version into everybody's slot, where they are when this returns."""
        super().pass_on(weight_version)
        torch.cuda.synchronize()

    def _meeting(self, host: str, port: int) -> Meeting:
        self._device_slots = DeviceWeightSlots.open(self._file)
        return Meeting(host, port, self._device_slots.raw().numel(), self._device_slots.shapes)

    def _hold(self, meeting: Meeting) -> Tensor:
        if self._store is None:  # not rank 0
            self._device_slots = DeviceWeightSlots.create(self._file, meeting.shapes, self._num_slots)
        return self._device_slots.raw()

    def _join(self, store: Store, rank: int, num_relays: int) -> Any:  # noqa: ANN401  (a process group)
        from torch.distributed import ProcessGroupNCCL  # not in CPU builds

        options = ProcessGroupNCCL.Options()
        options._timeout = self._timeout
        return ProcessGroupNCCL(store, rank, num_relays, options)


def connect(relays: Sequence[Actor], timeout_s: float) -> None:
    """Makes one group of them, the first on the trainer's node, once the trainer is up; of none, nothing."""
    if relays:
        meeting = wait_for(relays[0].handle.open.remote(), timeout_s, relays[0], "to open a group")
        joins = [(relay.handle.join.remote(meeting, rank, len(relays)), relay) for rank, relay in enumerate(relays)]
        wait_for_all(joins, timeout_s, "to join the group")


def close(relays: Sequence[Actor]) -> None:
    """Before they are ended. What one leaves that no longer answers, the next relay on its node clears away."""
    for call, relay in [(relay.handle.close.remote(), relay) for relay in relays]:
        with suppress(ActorFailed):
            wait_for(call, CLOSE_S, relay, "to give its memory back")
