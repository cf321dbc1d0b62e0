"""Relays on one machine, each with a slots file of its own, as on several nodes."""

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch
from torch import nn

from actors.actor import Actor
from actors.crew import Crew
from actors.waiting import wait_for
from actors.weight_relay import WeightRelay, close, connect
from actors.weight_slots import WeightSlots
from actors.weight_sync import SentWeights, SharedMemorySync
from rlhaiku.errors import ActorDied

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file
pytestmark = pytest.mark.usefixtures("cluster")
NODES, SLOTS, TIMEOUT_S = 3, 2, 4.0


class Sender:
    """A trainer whose weights differ at every version."""

    def __init__(self, file):
        self.model = nn.Linear(300, 70)
        self.slots = WeightSlots(file, self.model, SLOTS)

    def send_weights(self, weight_version):
        nn.init.normal_(self.model.weight, generator=torch.Generator().manual_seed(weight_version))
        checksum = self.slots.write(weight_version, self.model.named_parameters())
        return SentWeights(weight_version, checksum, self.slots.num_bytes)


class Reader:
    """An engine, as far as weights go."""

    def __init__(self, file):
        self.slots = WeightSlots(file, nn.Linear(300, 70), SLOTS)

    def receive_weights(self, weight_version):
        return self.slots.checksum(weight_version)


def answer(actor, method, *arguments):
    return wait_for(getattr(actor.handle, method).remote(*arguments), 60, actor)


@pytest.fixture
def start_relays():
    """Starts relays as `launch.start` does; all are gone at the end."""
    started = []

    def start(count, trainer_file):
        cls = ray.remote(num_cpus=0)(WeightRelay)
        files = [trainer_file, *(None for _ in range(1, count))]
        relays = [Actor(f"weight relay {n}", cls.remote(SLOTS, TIMEOUT_S, file)) for n, file in enumerate(files)]
        started.extend(relays)
        return relays

    yield start
    for relay in started:
        ray.kill(relay.handle)


@pytest.fixture
def world(start_relays, tmp_path):
    """A trainer on the first of three nodes, and an engine on each."""
    relays = start_relays(NODES, tmp_path / "weights")
    trainer = Actor("the trainer", ray.remote(num_cpus=0)(Sender).remote(tmp_path / "weights"))
    files = [answer(relay, "file") for relay in relays]
    reader = ray.remote(num_cpus=0, concurrency_groups={"control": 1})(Reader)
    engines = Crew("engine", lambda place: reader.remote(files[place]), NODES)
    for actor in (trainer, *engines.actors):
        answer(actor, "__ray_ready__")
    connect(relays, TIMEOUT_S)
    sync = SharedMemorySync(trainer, engines, [], TIMEOUT_S, relays)
    yield SimpleNamespace(sync=sync, relays=relays, files=files, engines=engines)
    for actor in (trainer, *engines.actors):
        ray.kill(actor.handle)


def slot(file, weight_version):
    """A version's bytes."""
    data = file.read_bytes()
    size = len(data) // SLOTS
    start = weight_version % SLOTS * size
    return data[start : start + size]


def test_every_node_has_the_trainers_bytes_and_a_new_version_spares_the_last(world):
    assert len(set(world.files)) == NODES
    reports, before = [], {}
    for weight_version in range(4):
        reports.append(world.sync.publish(weight_version))
        written = slot(world.files[0], weight_version)
        assert [slot(file, weight_version) for file in world.files] == [written] * NODES
        assert written not in before.values()
        if weight_version:
            last = weight_version - 1
            assert [slot(file, last) for file in world.files] == [before[last]] * NODES
        before[weight_version] = written
    assert len({report.checksum for report in reports}) == 4
    assert reports[0].num_bytes == 4 * (300 * 70 + 70)


def test_an_engine_that_replaces_another_reads_what_its_nodes_relay_holds(world):
    first, second = world.sync.publish(0), world.sync.publish(1)
    dead = world.engines.actors[2]
    dead.kill("a test")
    world.engines.replace(dead, ActorDied("a test"))
    successor = world.engines.actors[2]
    assert [answer(successor, "receive_weights", version) for version in (0, 1)] == [first.checksum, second.checksum]
    assert world.sync.publish(2).weight_version == 2


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_relay_that_is_gone_ends_the_sync_by_its_deadline(world, how):
    world.sync.publish(0)
    os.kill(world.relays[2].process().pid, how)
    started = time.monotonic()
    with pytest.raises(ActorDied, match=r"weight relay[\s\S]* to pass on weight version 1"):
        world.sync.publish(1)
    assert time.monotonic() - started < 4 * TIMEOUT_S, "the deadline, and a look at the stack"


def test_a_relay_says_that_another_is_gone(world):
    os.kill(world.relays[1].process().pid, signal.SIGKILL)
    with pytest.raises(ActorDied, match=r"needs those of all nodes to pass on weight version 5: "):
        answer(world.relays[2], "pass_on", 5)


def test_a_relay_that_never_joins_is_not_waited_for_without_end(start_relays, tmp_path):
    (tmp_path / "weights").write_bytes(bytes(64))
    relays = start_relays(2, tmp_path / "weights")
    answer(relays[1], "file")
    os.kill(relays[1].process().pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(ActorDied, match=r"weight relay[\s\S]* to join"):
        connect(relays, TIMEOUT_S)
    assert time.monotonic() - started < 4 * TIMEOUT_S


def test_a_relays_memory_is_given_back(start_relays, tmp_path):
    (tmp_path / "weights").write_bytes(bytes(64))
    relays = start_relays(3, tmp_path / "weights")
    _, closed, killed = (Path(answer(relay, "file")).parent for relay in relays)
    assert closed.is_dir() and killed.is_dir()
    pid = relays[2].process().pid
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.05)
    close(relays)
    assert not closed.exists() and (tmp_path / "weights").exists()
    answer(start_relays(2, tmp_path / "weights")[1], "file")
    assert not killed.exists(), "the next relay of the node clears away what a killed one left"


def test_where_all_engines_are_with_the_trainer_there_is_nothing_to_connect():
    connect([], TIMEOUT_S)
    close([])
