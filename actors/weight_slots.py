"""Model weights in shared memory: a flat file mapped by the trainer and by every engine of the node.

The file has one slot per weight version that may be alive at once. The trainer writes version v into slot
v % num_slots while engines still generate from another; an engine points its parameters into a slot, copying nothing.
"""

import zlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

ALIGNMENT = 64
"""Elements; every tensor starts on a cache line, so kernels see the same alignment in every slot."""
SAMPLES = 256
"""Elements per tensor that enter the checksum."""


class WeightSlots:
    """A model's parameters by version, in a mapped file. Tied parameters are held once."""

    def __init__(self, path: Path, model: nn.Module, num_slots: int) -> None:
        """Maps `path`, creating it at the right size if it is missing; all sides must use the same architecture."""
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self._offsets, end = {}, 0
        for name, shape in self._shapes.items():
            self._offsets[name] = end
            end += -(-shape.numel() // ALIGNMENT) * ALIGNMENT
        dtype = next(model.parameters()).dtype
        flat = torch.from_file(str(path), shared=True, size=end * num_slots, dtype=dtype)
        self._slots = flat.view(num_slots, end)
        self.num_bytes = sum(shape.numel() for shape in self._shapes.values()) * dtype.itemsize

    def views(self, weight_version: int) -> dict[str, Tensor]:
        """Every parameter as a view into the version's slot."""
        slot = self._slots[weight_version % len(self._slots)]
        return {
            name: slot[self._offsets[name] : self._offsets[name] + shape.numel()].view(shape)
            for name, shape in self._shapes.items()
        }

    def write(self, weight_version: int, parameters: Iterable[tuple[str, Tensor]]) -> int:
        """Copies named parameters into the version's slot and returns their checksum."""
        views = self.views(weight_version)
        for name, parameter in parameters:
            views[name].copy_(parameter.detach())
        return self.checksum(weight_version)

    def checksum(self, weight_version: int) -> int:
        """CRC-32 over evenly spaced elements of every tensor of the version."""
        crc = 0
        for view in self.views(weight_version).values():
            flat = view.flatten()
            sampled = flat[:: max(1, flat.numel() // SAMPLES)].contiguous()
            crc = zlib.crc32(sampled.view(torch.uint8).numpy().tobytes(), crc)
        return crc
