"""Memory of a card that two processes have open: here a mapped file beside the one that names it."""

import pickle

import torch

from actors.weight_slots import DeviceWeightSlots, slot_elements


class CardMemory(DeviceWeightSlots):
    @classmethod
    def create(cls, path, shapes, num_slots):
        path.write_bytes(pickle.dumps((dict(shapes), num_slots)))
        return cls.open(path)

    @classmethod
    def open(cls, path):
        shapes, num_slots = pickle.loads(path.read_bytes())
        size, memory = slot_elements(shapes) * num_slots, path.with_suffix(".memory")
        return cls(shapes, torch.from_file(str(memory), shared=True, size=size, dtype=torch.bfloat16), num_slots)


def pretend(module):
    """Lets a module of ours take this for a card's memory."""
    module.DeviceWeightSlots = CardMemory
