"""Weights for engines on other nodes than the trainer's: one relay on each node that has engines.

    trainer ──writes──► slots ◄──reads── relay 0 ══ gloo ══► relay 1 ──writes──► slots ◄──map── engines
                       (node 0)                                                (node 1)

A relay passes bytes on and knows nothing of models. Whether they arrived, the engines' checksums say, as on the
trainer's own node. One that dies ends the attempt: its engines cannot get what comes next.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import ray
import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo, TCPStore  # type: ignore[attr-defined]

from actors.actor import Actor
from actors.waiting import wait_for, wait_for_all
from actors.weight_slots import shared_directory
from rlhaiku.errors import ActorDied, ActorFailed

CLOSE_S = 20.0


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where relays find each other, and how much memory they hold."""

    host: str
    """Address of the trainer's node."""
    port: int
    num_bytes: int
    """Of all slots together."""


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
        return Meeting(self._address, self._store.port, self._file.stat().st_size)

    def join(self, meeting: Meeting, rank: int, num_relays: int) -> None:
        """Returns when all have joined; raises ActorDied if somebody does not."""
        with self._needing_others("to join"):
            store = self._store or TCPStore(meeting.host, meeting.port, wait_for_workers=False, timeout=self._timeout)
            options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
            options._timeout = self._timeout
            # The address that Ray knows: gloo would take the host name's, which others may not reach.
            options._devices = [ProcessGroupGloo.create_device(hostname=self._address)]
            self._group = ProcessGroupGloo(store, rank, num_relays, options)
        flat = torch.from_file(str(self._file), shared=True, size=meeting.num_bytes, dtype=torch.uint8)
        self._slots: Tensor = flat.view(self._num_slots, -1)

    def pass_on(self, weight_version: int) -> None:
        """Every relay at once: rank 0's bytes of a version into everybody's slot; raises ActorDied if one is gone."""
        with self._needing_others(f"to pass on weight version {weight_version}"):
            slot = self._slots[weight_version % self._num_slots]
            self._group.broadcast(slot, 0).wait(self._timeout)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Gives the memory back once nobody maps it."""
        self._held.close()

    @contextmanager
    def _needing_others(self, doing: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            said = str(error).partition("\n")[0]
            raise ActorDied(f"the weight relay at {self._address} needs those of all nodes {doing}: {said}") from None


def connect(relays: Sequence[Actor], timeout_s: float) -> None:
    """Makes one group of them, the first on the trainer's node, once the trainer is up; of none, nothing."""
    if relays:
        meeting = wait_for(relays[0].handle.open.remote(), timeout_s, relays[0], "to open a gloo group")
        joins = [(relay.handle.join.remote(meeting, rank, len(relays)), relay) for rank, relay in enumerate(relays)]
        wait_for_all(joins, timeout_s, "to join a gloo group")


def close(relays: Sequence[Actor]) -> None:
    """Before they are ended. What one leaves that no longer answers, the next relay on its node clears away."""
    for call, relay in [(relay.handle.close.remote(), relay) for relay in relays]:
        with suppress(ActorFailed):
            wait_for(call, CLOSE_S, relay, "to give its memory back")
