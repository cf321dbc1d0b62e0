"""Model weights in memory that the trainer and every engine of the node share, one slot per version that may be alive.

The trainer writes version v into slot v % num_slots while engines still generate from another. On CPUs the slots are a
mapped file and an engine points its parameters into one, copying nothing. On a GPU they are one buffer of the trainer's
that engines on the same card open over CUDA IPC; the handle is exchanged once, and then only version numbers.
"""

import os
import pickle
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from rlhaiku.errors import WeightMismatch

ALIGNMENT = 64
"""Elements; every tensor starts on a cache line, so kernels see the same alignment in every slot."""
SAMPLES = 256
"""Elements per tensor that enter the checksum."""
WORD = 4
"""bf16 elements in 64 bits."""
DEVICE_INDEX = 6
"""Which argument of torch's `rebuild_cuda_tensor` names the device, a number that the receiver counts its own way."""

Shapes = Mapping[str, torch.Size]


def checksum(tensors: Iterable[Tensor]) -> int:
    """CRC-32 over evenly spaced elements of every tensor, in their order."""
    return _crc(torch.cat([_sampled(tensor) for tensor in tensors]).cpu())


def hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """By name: the sum of all that a bf16 tensor holds, as integers, and a CRC-32 over evenly spaced elements.

    The sum tells a tensor from that of another version, unless its changes happen to cancel; the CRC minds where
    elements are. A GPU reads the tensors once and is waited for twice, whatever their number.
    """
    flat = [tensor.detach().flatten() for tensor in tensors.values()]
    words = [each.view(torch.int64 if each.numel() % WORD == 0 else torch.int16) for each in flat]
    sums = torch.stack([each.sum() for each in words]).tolist()
    sampled = [_sampled(each) for each in flat]
    parts = torch.split(torch.cat(sampled).cpu(), [len(each) for each in sampled])
    return {
        name: f"{total % 2**64:016x}{_crc(part):08x}" for name, total, part in zip(tensors, sums, parts, strict=True)
    }


def _sampled(tensor: Tensor) -> Tensor:
    flat = tensor.flatten()
    return flat[:: _sample_step(flat.numel())]


def _sample_step(num_elements: int) -> int:
    return max(1, num_elements // SAMPLES)


def _crc(elements: Tensor) -> int:
    return zlib.crc32(elements.view(torch.uint8).numpy().tobytes())


class WeightSlots:
    """A model's parameters by version. Tied parameters are held once."""

    def __init__(self, path: Path, model: nn.Module, num_slots: int) -> None:
        """Maps `path`, creating it at the right size if it is missing; all sides must use the same architecture."""
        shapes, dtype = parameter_shapes(model), next(model.parameters()).dtype
        size = slot_elements(shapes) * num_slots
        self._lay_out(shapes, torch.from_file(str(path), shared=True, size=size, dtype=dtype), num_slots)

    def _lay_out(self, shapes: Shapes, flat: Tensor, num_slots: int) -> None:
        self.shapes = shapes
        self._slots = flat.view(num_slots, -1)
        sizes, self._starts = [shape.numel() for shape in shapes.values()], _starts(shapes)
        laid_out = zip(self._starts, sizes, strict=False)  # the last start is the slot's end
        places = [torch.arange(start, start + size, _sample_step(size)) for start, size in laid_out]
        self._places = torch.cat(places).to(flat.device)
        """[N] elements of a slot that enter its checksum: taken at once, not tensor by tensor."""
        self.num_bytes = sum(sizes) * flat.dtype.itemsize

    def _slot(self, weight_version: int) -> Tensor:
        return self._slots[weight_version % len(self._slots)]

    def views(self, weight_version: int) -> dict[str, Tensor]:
        """Every parameter as a view into the version's slot."""
        slot, named = self._slot(weight_version), zip(self.shapes.items(), self._starts, strict=False)
        return {name: slot[start : start + shape.numel()].view(shape) for (name, shape), start in named}

    def write(self, weight_version: int, parameters: Iterable[tuple[str, Tensor]]) -> int:
        """Copies named parameters into the version's slot and returns their checksum."""
        views = self.views(weight_version)
        names, tensors = zip(*parameters, strict=True)
        with torch.no_grad():
            torch._foreach_copy_([views[name] for name in names], list(tensors))
        return self.checksum(weight_version)

    def adopt(self, model: nn.Module) -> None:
        """Moves a model's parameters into the only slot, where each change to them is one to what others read."""
        assert len(self._slots) == 1, "with several slots, the versions before must stay as they are"
        self.write(0, model.named_parameters())
        views = self.views(0)
        for name, parameter in model.named_parameters():
            parameter.data = views[name]

    def checksum(self, weight_version: int) -> int:
        """The version's, as `checksum` of its tensors; whatever was queued on a GPU to write it is waited for."""
        return _crc(self._slot(weight_version)[self._places].cpu())


class DeviceWeightSlots(WeightSlots):
    """The same in GPU memory, as bf16: made by the trainer or by a relay, opened by others on the same card."""

    def __init__(self, shapes: Shapes, flat: Tensor, num_slots: int) -> None:
        self._lay_out(shapes, flat, num_slots)

    @classmethod
    def create(cls, path: Path, shapes: Shapes, num_slots: int) -> "DeviceWeightSlots":
        """Takes the memory, and leaves in `path` what another process needs to open it."""
        from torch.multiprocessing.reductions import reduce_tensor

        flat = torch.empty(slot_elements(shapes) * num_slots, dtype=torch.bfloat16, device="cuda")
        _, handle = reduce_tensor(flat)  # type: ignore[no-untyped-call]
        partial = path.with_suffix(".partial")
        sizes = {name: tuple(shape) for name, shape in shapes.items()}
        partial.write_bytes(pickle.dumps((sizes, num_slots, this_card(), handle)))
        os.replace(partial, path)
        return cls(shapes, flat, num_slots)

    @classmethod
    def open(cls, path: Path) -> "DeviceWeightSlots":
        """Opens what another process created on this card and still holds; raises WeightMismatch on another card."""
        from torch.multiprocessing.reductions import rebuild_cuda_tensor

        shapes, num_slots, card, handle = pickle.loads(path.read_bytes())
        if card != this_card():
            raise WeightMismatch(f"weights on a GPU are opened on the card they are on, {card}; got {this_card()}. An "
                                 "engine elsewhere needs the file of the relay on its own card.")
        here = [*handle[:DEVICE_INDEX], torch.cuda.current_device(), *handle[DEVICE_INDEX + 1 :]]
        flat: Tensor = rebuild_cuda_tensor(*here)  # type: ignore[no-untyped-call]
        return cls({name: torch.Size(shape) for name, shape in shapes.items()}, flat, num_slots)

    def raw(self) -> Tensor:
        """[slots, bytes] all there is, to be passed on."""
        return self._slots.view(torch.uint8)


def this_card() -> str:
    """The UUID of the current GPU: its number is another in each process that sees only some of them."""
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)


def shared_directory() -> TemporaryDirectory[str]:
    """A new directory in shared memory; those of processes that were killed are cleared away first."""
    root = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())
    for left in root.glob("rlhaiku-*"):
        owner = re.match(r"rlhaiku-(\d+)-", left.name)
        if owner and not Path("/proc", owner[1]).exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)
    return TemporaryDirectory(prefix=f"rlhaiku-{os.getpid()}-", dir=root)


def parameter_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Shapes by name, in the model's own order."""
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def slot_elements(shapes: Shapes) -> int:
    """Elements of one slot."""
    return _starts(shapes)[-1]


def _starts(shapes: Shapes) -> list[int]:
    """Of each tensor in a slot, and the slot's end."""
    return [0, *accumulate(-(-shape.numel() // ALIGNMENT) * ALIGNMENT for shape in shapes.values())]
