"""What counts as holding the trainer's weights, and waiting for several actors at once."""

import base64
import importlib
import io
import os
import pickle
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch

from actors.actor import Actor
from actors.engines.sglang_engine import HeldWeights
from actors.engines.sglang_server import SLOT_LOADER, engine_tensors, slot_message
from actors.slime_sync import SentTensors, SlimeSync, _complaint
from actors.trainers.megatron_trainer import _number
from actors.waiting import wait_for, wait_for_all
from rlhaiku.errors import ActorDied, ActorFailed, RunFailed

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file
SENT = SentTensors({"a.weight": "1", "norm.weight": "2"}, 8)


@pytest.mark.parametrize(("version", "hashes", "said"), [
    (3, {"a.weight": "1", "norm.weight": "2", "more": "9"}, ""),
    (2, {"a.weight": "1", "norm.weight": "2"}, "it reports 2"),
    (3, {"a.weight": "1", "norm.weight": "5"}, "0 are missing and 1 differ, e.g. norm.weight"),
    (3, {"norm.weight": "2"}, "1 are missing and 0 differ, e.g. a.weight"),
])
def test_every_tensor_counts(version, hashes, said):
    complaint = _complaint(SENT, HeldWeights(version, (hashes,)), 3)
    assert said in complaint if said else not complaint


def test_on_several_gpus_what_is_not_cut_counts():
    parts = ({"a.weight": "7", "norm.weight": "2"}, {"a.weight": "8", "norm.weight": "2"})
    assert not _complaint(SENT, HeldWeights(3, parts), 3)
    wrong = (parts[0], {"a.weight": "8", "norm.weight": "3"})
    assert "1 differ" in _complaint(SENT, HeldWeights(3, wrong), 3)


def test_tensors_are_joined_and_padded_as_sglang_holds_them():
    q, k, v = torch.ones(4, 2), torch.ones(2, 2) * 2, torch.ones(2, 2) * 3
    names = [f"model.layers.0.self_attn.{each}_proj.weight" for each in "qkv"]
    [(name, joined)] = engine_tensors(zip(names, (q, k, v), strict=True))
    assert name == "model.layers.0.self_attn.qkv_proj.weight"
    assert joined[:, 0].tolist() == [1, 1, 1, 1, 2, 2, 3, 3]
    names = [f"model.layers.1.mlp.{each}_proj.weight" for each in ("gate", "up")]
    [(name, joined)] = engine_tensors(zip(names, (k, v), strict=True))
    assert name == "model.layers.1.mlp.gate_up_proj.weight" and joined[:, 0].tolist() == [2, 2, 3, 3]
    [(name, padded)] = engine_tensors([("model.embed_tokens.weight", torch.ones(70, 2))])
    assert padded.shape == (128, 2) and padded[70:].eq(0).all() and padded[:70].eq(1).all()
    [(name, same)] = engine_tensors([("model.norm.weight", q)])
    assert same is q


class AsSglangAllows(pickle.Unpickler):
    """SGLang's SafeUnpickler loads nothing from modules of ours."""

    def find_class(self, module, name):
        assert module.partition(".")[0] in ("builtins", "collections", "torch"), (module, name)
        return super().find_class(module, name)


def test_a_server_is_sent_the_names_of_two_files_in_what_it_unpickles():
    message = base64.b64decode(slot_message(Path("/dev/shm/card-3"), Path("/dev/shm/card-3.held-7")))
    named = AsSglangAllows(io.BytesIO(message)).load()
    assert [name for name, _ in named] == ["/dev/shm/card-3", "/dev/shm/card-3.held-7"]
    assert not any(tensor.numel() for _, tensor in named)
    module, _, function = SLOT_LOADER.rpartition(".")
    assert callable(getattr(importlib.import_module(module), function))


def test_what_slime_does_not_log_is_no_zero():
    row = {"train/loss": 0.5, "train/grad_norm": 2.0}
    assert _number(row, "train/grad_norm") == 2.0 and _number(row, "train/kl_loss") == 0.0
    with pytest.raises(RunFailed, match=r"must log train/pg_clipfrac .* train/grad_norm, train/loss"):
        _number(row, "train/pg_clipfrac")


class Worker:
    def wait(self, seconds):
        time.sleep(seconds)
        return seconds

    def fail(self):
        raise OSError("connection refused")

    def end(self):
        os._exit(1)


@pytest.fixture
def workers(cluster):
    made = [Actor(f"worker {i}", ray.remote(num_cpus=0, max_concurrency=2)(Worker).remote()) for i in range(3)]
    for each in made:
        wait_for(each.handle.__ray_ready__.remote(), 60, each)
    yield made
    for each in made:
        ray.kill(each.handle)


def test_results_come_in_the_order_of_the_calls(workers):
    calls = [(each.handle.wait.remote(seconds), each) for each, seconds in zip(workers, (0.3, 0.1, 0.2), strict=True)]
    assert wait_for_all(calls, 20, "to wait") == [0.3, 0.1, 0.2]


def test_the_death_of_somebody_all_wait_for_ends_the_wait(workers):
    first, second, needed = workers
    calls = [(each.handle.wait.remote(60), each) for each in (first, second)]
    needed.handle.end.remote()
    started = time.monotonic()
    with pytest.raises(ActorDied, match="worker 2"):
        wait_for_all(calls, 30, "to send weights", watched=[needed])
    assert time.monotonic() - started < 15


def test_who_is_late_is_killed_and_named(workers):
    calls = [(workers[0].handle.wait.remote(0), workers[0]), *((w.handle.wait.remote(60), w) for w in workers[1:])]
    with pytest.raises(ActorDied, match=r"worker 1 .*late too: worker 2"):
        wait_for_all(calls, 1.5, "to send weights")
    assert workers[1].killed_because and workers[2].killed_because and not workers[0].killed_because


def test_what_fails_because_somebody_died_is_a_death(workers):
    asking, needed, _ = workers
    needed.handle.end.remote()
    with pytest.raises(ActorDied, match="worker 1"):
        wait_for_all([(asking.handle.fail.remote(), asking)], 20, "to send weights", watched=[needed])


def test_what_fails_by_itself_is_a_failure(workers):
    asking, needed, _ = workers
    with pytest.raises(ActorFailed, match="connection refused"):
        wait_for_all([(asking.handle.fail.remote(), asking)], 20, "to send weights", watched=[needed])


@pytest.mark.parametrize(("has_new", "expected"), [(True, ActorDied), (False, ActorFailed)])
def test_an_update_that_fails_after_a_replacement_ends_the_attempt_and_not_the_run(monkeypatch, has_new, expected):
    def deliver(weight_version):
        raise ActorFailed("trainer rank 0: ncclCommDestroy failed")

    sync = SlimeSync([], SimpleNamespace(actors=[]), None, 5.0)
    monkeypatch.setattr(sync, "_register_successors", lambda: has_new)
    monkeypatch.setattr(sync, "_deliver", deliver)
    with pytest.raises(ActorFailed, match="ncclCommDestroy failed") as raised:
        sync.publish(1)
    assert type(raised.value) is expected
