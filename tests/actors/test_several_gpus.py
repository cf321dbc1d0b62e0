"""What only GPUs can show of several ranks and relays: FSDP2 in bf16, NCCL, and CUDA IPC on the right card."""

import multiprocessing
import os
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from actors.trainers import torch_trainer
from actors.trainers.sharded_policy import ShardedPolicy, join
from actors.weight_relay import DeviceWeightRelay
from actors.weight_slots import DeviceWeightSlots, parameter_shapes
from rlhaiku.errors import WeightMismatch
from tests.actors.test_sharded_trainer import RANKS, Pair, Rank, assert_close, make_spec, make_train_batch
from tests.tiny import save_tiny_model

pytestmark = pytest.mark.gpu
two_cards = pytest.mark.skipif(torch.cuda.device_count() < RANKS, reason="needs two GPUs")
BF16 = 2**-8
"""Relative step between neighbouring numbers."""
ANSWER_S = 120
SLOTS = 2
SETTINGS = {"plain": {}, "recompute": {"recompute": True}, "packs": {"micro_batch_tokens": 20}}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def alone(model_path, tmp_path):
    """One rank on one card, as without FSDP."""
    rank = Rank()
    rank.make(make_spec(model_path, tmp_path / "alone", device="cuda"))
    return rank


def assert_alike(found, expected):
    (stats, gradients), (their_stats, their_gradients) = found, expected
    assert stats.loss == pytest.approx(their_stats.loss, rel=0.02, abs=2e-3)
    assert stats.grad_norm == pytest.approx(their_stats.grad_norm, rel=0.03)
    assert stats.num_forward_tokens == their_stats.num_forward_tokens
    for name, gradient in their_gradients.items():
        error = (gradients[name] - gradient).norm() / gradient.norm()
        assert error < 16 * BF16, f"{name}: {error:.4f}"


def test_fsdp_with_one_rank_is_the_plain_trainer(alone, model_path, tmp_path, monkeypatch):
    """bf16 by FSDP's mixed precision against bf16 with masters of our own; needs one card."""
    expected = alone.gradients(make_train_batch())
    join("cuda", tmp_path / "meeting", 0, 1, 60.0)
    try:
        monkeypatch.setattr(torch_trainer, "Policy", ShardedPolicy)
        for name, settings in SETTINGS.items():
            sharded = Rank()
            sharded.make(make_spec(model_path, tmp_path / name, device="cuda", **settings))
            assert_alike(sharded.gradients(make_train_batch()), expected)
            assert {weight.dtype for weight in sharded.weights().values()} == {torch.float32}
            sent = sharded.send_weights(0)
            assert sent.num_bytes == 2 * sum(weight.numel() for weight in sharded.weights().values())
    finally:
        torch.distributed.destroy_process_group()


def test_with_one_slot_engines_read_the_model_itself(alone, model_path, tmp_path):
    viewed = Rank()
    viewed.make(replace(make_spec(model_path, tmp_path / "viewed", device="cuda"), num_slots=1))
    views = viewed.trainer._slots.views(0)
    first = viewed.send_weights(0)
    assert first == alone.send_weights(0)
    assert_alike(viewed.gradients(make_train_batch()), alone.gradients(make_train_batch()))
    for name, parameter in viewed.trainer._model.named_parameters():
        assert parameter.data_ptr() == views[name].data_ptr(), name
        assert torch.equal(views[name], viewed.trainer._policy.weights[name].bfloat16()), name
    assert viewed.send_weights(1).checksum != first.checksum
    viewed.save(tmp_path)
    viewed.load(tmp_path)
    assert viewed.send_weights(2).checksum == viewed.send_weights(3).checksum


@pytest.fixture(scope="module")
def processes():
    pair = Pair()
    yield pair
    pair.end()


@two_cards
def test_two_cards_are_one_trainer(processes, alone, model_path, tmp_path):
    for name, settings in SETTINGS.items():
        (tmp_path / name).mkdir()
        make = partial(make_spec, model_path, tmp_path / name / "w", num_ranks=RANKS, device="cuda", **settings)
        processes.ask_both("make", *((make(rank=rank),) for rank in range(RANKS)))
        first = processes.ask("send_weights", 0)
        found = processes.ask("gradients", make_train_batch())
        if name == "plain":
            assert first.checksum == alone.send_weights(0).checksum
            expected = alone.gradients(make_train_batch())
        assert_alike(found, expected)
        assert processes.ask("send_weights", 1).checksum != first.checksum
    processes.ask("save", tmp_path)
    weights, straight = processes.ask("weights"), processes.ask("gradients", make_train_batch(1))
    processes.ask("load", tmp_path)
    assert_close(processes.ask("weights"), weights, rtol=0, atol=0)
    assert_alike(processes.ask("gradients", make_train_batch(1)), straight)
    alone.load(tmp_path)
    assert_close(alone.weights(), weights, rtol=0, atol=0)
    assert_alike(alone.gradients(make_train_batch(1)), straight)


class Sender:
    """A trainer as far as weights go, on the first card."""

    def __init__(self, file):
        self.model = nn.Linear(300, 70).cuda()
        self.slots = DeviceWeightSlots.create(file, parameter_shapes(self.model), SLOTS)

    def send(self, weight_version):
        nn.init.normal_(self.model.weight)
        return self.slots.write(weight_version, self.model.named_parameters())


class Reader:
    """An engine as far as weights go."""

    def read(self, file, weight_version):
        return DeviceWeightSlots.open(file).checksum(weight_version)


def serve(pipe, make, card):
    os.environ["CUDA_VISIBLE_DEVICES"] = str(card)
    here = make()
    while True:
        method, arguments = pipe.recv()
        try:
            pipe.send(getattr(here, method)(*arguments))
        except Exception as error:
            pipe.send(error)


@pytest.fixture
def spawn():
    """Starts an object in a process of its own that sees one card; what it is asked is sent at once."""
    context, started = multiprocessing.get_context("spawn"), []

    def start(make, card):
        pipe, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, make, card), daemon=True)
        process.start()
        started.append(process)
        return pipe

    yield start
    for process in started:
        process.kill()
        process.join(30)


def ask(*calls):
    """Asks all, then waits for all."""
    for pipe, method, *arguments in calls:
        pipe.send((method, arguments))
    answers = []
    for pipe, *_ in calls:
        assert pipe.poll(ANSWER_S)
        answers.append(pipe.recv())
    return answers


@two_cards
def test_weights_reach_engines_on_another_card_through_relays(spawn, tmp_path):
    file = tmp_path / "weights"
    trainer, near, far = spawn(partial(Sender, file), 0), spawn(Reader, 0), spawn(Reader, 1)
    (sent,) = ask((trainer, "send", 0))
    relays = [spawn(partial(DeviceWeightRelay, SLOTS, 30.0, own), card) for card, own in enumerate((file, None))]
    (meeting,) = ask((relays[0], "open"))
    assert ask(*((relay, "join", meeting, rank, 2) for rank, relay in enumerate(relays))) == [None, None]
    (there,) = ask((relays[1], "file"))
    for weight_version in range(4):
        (sent,) = ask((trainer, "send", weight_version))
        assert ask(*((relay, "pass_on", weight_version) for relay in relays)) == [None, None]
        found = ask((near, "read", file, weight_version), (far, "read", there, weight_version))
        assert found == [sent, sent]
    (refused,) = ask((far, "read", file, 0))
    assert isinstance(refused, WeightMismatch), refused
