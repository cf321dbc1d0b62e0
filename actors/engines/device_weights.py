"""How an engine on a GPU takes weights: from the trainer's buffer on the same card, into tensors of its own."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from actors.weight_slots import DeviceWeightSlots, Shapes, checksum
from rlhaiku.errors import WeightMismatch


class DeviceWeights:
    """The versions an engine may load, and the one it holds."""

    def __init__(self, path: Path, num_slots: int, published: Iterable[int]) -> None:
        """`path`: where the trainer leaves its buffer's handle; `published`: versions already there."""
        self._path, self._num_slots = path, num_slots
        self._slots: DeviceWeightSlots | None = None
        self._received: dict[int, int] = {}
        self.loaded = -1
        """The version that the engine's own tensors hold; -1 for none that was published."""
        for weight_version in published:
            self.receive(weight_version)

    def receive(self, weight_version: int) -> int:
        """Makes a published version available; returns its checksum as read from the trainer's buffer.

        The slot this version overwrote held `weight_version - num_slots`, so that one is gone.
        """
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(aside):  # not behind what a generation has queued
            if self._slots is None:
                self._slots = DeviceWeightSlots.open(self._path)
            found = self._slots.checksum(weight_version)
        kept = {v: crc for v, crc in self._received.items() if v > weight_version - self._num_slots}
        self._received = kept | {weight_version: found}
        return found

    def load(self, weight_version: int, own: Callable[[Shapes], Mapping[str, Tensor]]) -> None:
        """Copies a version into `own(shapes)`, tensors by the trainer's names, and checks what arrived.

        Raises WeightMismatch for a version that is not there, or if other weights arrived.
        """
        if weight_version not in self._received or self._slots is None:
            raise WeightMismatch(f"a request must name published weights; got version {weight_version}, published are "
                                 f"{sorted(self._received)}. Sync before submitting.")
        targets, sent = own(self._slots.shapes), self._slots.views(weight_version)
        torch.cuda.synchronize()  # a step that was begun ahead may still read
        with torch.no_grad():
            torch._foreach_copy_([targets[name] for name in sent], list(sent.values()))
        found, expected = checksum(targets[name] for name in sent), self._received[weight_version]
        if found != expected:
            raise WeightMismatch(f"the engine must hold the trainer's version {weight_version} (checksum "
                                 f"{expected:#010x}); got {found:#010x}. Is model.path the same model on both sides?")
        self.loaded = weight_version
