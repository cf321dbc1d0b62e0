"""Relays between cards, as far as they go without any: slots stand in for GPU memory, gloo for NCCL. No Ray."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn

from actors import weight_slots
from actors.weight_relay import DeviceWeightRelay, WeightRelay
from actors.weight_slots import DeviceWeightSlots, parameter_shapes
from rlhaiku.errors import WeightMismatch

SLOTS = 2
CARDS = {"trainer": "GPU-1", "engine": "GPU-2"}


class Memory(DeviceWeightSlots):
    """Tensors of this process by the file that names them, where CUDA IPC would map them."""

    held = {}  # noqa: RUF012  (shared on purpose)

    @classmethod
    def create(cls, path, shapes, num_slots):
        flat = torch.zeros(weight_slots.slot_elements(shapes) * num_slots, dtype=torch.bfloat16)
        cls.held[path] = cls(shapes, flat, num_slots)
        return cls.open(path)

    @classmethod
    def open(cls, path):
        made = cls.held[path]
        return cls(made.shapes, made._slots.flatten(), len(made._slots))


class Relay(DeviceWeightRelay):
    _join = WeightRelay._join


@pytest.fixture
def relays(tmp_path, monkeypatch):
    """Rank 0 beside a trainer that has its slots, and one on another card, connected."""
    monkeypatch.setattr("actors.weight_relay.DeviceWeightSlots", Memory)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    threads = torch.get_num_threads()
    file = tmp_path / "weights"
    Memory.create(file, parameter_shapes(nn.Linear(300, 70)), SLOTS)
    pair = [Relay(SLOTS, 20.0, file), Relay(SLOTS, 20.0)]
    meeting = pickle.loads(pickle.dumps(pair[0].open()))
    assert meeting.shapes == {"weight": torch.Size([70, 300]), "bias": torch.Size([70])}
    together(*(partial(relay.join, meeting, rank, 2) for rank, relay in enumerate(pair)))
    yield pair
    for relay in pair:
        relay.close()
    torch.set_num_threads(threads)  # a relay takes one


def together(*calls):
    with ThreadPoolExecutor(len(calls)) as threads:
        for done in [threads.submit(call) for call in calls]:
            done.result(timeout=60)


def test_an_engine_on_another_card_reads_there_what_the_trainer_wrote(relays):
    model = nn.Linear(300, 70)
    trainer, engine = (Memory.open(relay.file()) for relay in relays)
    assert trainer._slots.data_ptr() != engine._slots.data_ptr()
    before = 0
    for weight_version in range(4):
        nn.init.normal_(model.weight, generator=torch.Generator().manual_seed(weight_version))
        sent = trainer.write(weight_version, model.named_parameters())
        assert engine.checksum(weight_version) != sent
        together(*(partial(relay.pass_on, weight_version) for relay in relays))
        assert engine.checksum(weight_version) == sent != before
        assert torch.equal(engine.views(weight_version)["weight"], model.weight.bfloat16())
        assert not before or engine.checksum(weight_version - 1) == before, "the version before it is still there"
        before = sent
    assert engine.num_bytes == 2 * (300 * 70 + 70)


def test_a_buffer_is_opened_on_its_own_card_alone(tmp_path, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(pickle.dumps(({"weight": (2, 3)}, SLOTS, CARDS["trainer"], ("a handle",))))
    monkeypatch.setattr(weight_slots, "this_card", lambda: CARDS["engine"])
    with pytest.raises(WeightMismatch, match=r"the card they are on, GPU-1; got GPU-2\. .* relay on its own card"):
        DeviceWeightSlots.open(file)
    monkeypatch.setattr(weight_slots, "this_card", lambda: CARDS["trainer"])
    with pytest.raises(Exception, match=r"CUDA|NVIDIA|rebuild_cuda_tensor"):  # on its own card it goes on to the handle
        DeviceWeightSlots.open(file)
