"""Relays on one machine, each with a slots file of its own, as on several nodes."""

import os
import signal
import sys
import time
from pathlib import Path

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
SLOTS, TIMEOUT_S = 2, 4.0


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
def trainer(tmp_path):
    actor = Actor("the trainer", ray.remote(num_cpus=0)(Sender).remote(tmp_path / "weights"))
    yield actor
    ray.kill(actor.handle)


@pytest.fixture
def relays(start_relays, trainer, tmp_path):
    """Of two nodes, connected."""
    relays = start_relays(2, tmp_path / "weights")
    for actor in (trainer, *relays):
        answer(actor, "__ray_ready__")
    connect(relays, TIMEOUT_S)
    return relays


def slot(file, weight_version):
    """A version's bytes."""
    data = file.read_bytes()
    size = len(data) // SLOTS
    start = weight_version % SLOTS * size
    return data[start : start + size]


def test_every_node_has_the_trainers_bytes_and_its_engines_confirm_them(relays, trainer):
    files = [answer(relay, "file") for relay in relays]
    reader = ray.remote(num_cpus=0, concurrency_groups={"control": 1})(Reader)
    engines = Crew("engine", lambda place: reader.remote(files[place]), 2)
    sync = SharedMemorySync(trainer, engines, [], 60, relays)
    here, there = files
    assert here != there
    reports, last = [], b""
    for weight_version in range(4):
        reports.append(sync.publish(weight_version))
        written = slot(here, weight_version)
        assert slot(there, weight_version) == written != last
        assert not last or slot(there, weight_version - 1) == last, "a new version spares the one before it"
        last = written
    assert len({report.checksum for report in reports}) == 4
    assert reports[0].num_bytes == 4 * (300 * 70 + 70)
    engines.actors[1].kill("a test")
    assert sync.publish(4).weight_version == 4, "somebody else read it there"
    assert answer(engines.actors[1], "receive_weights", 3) == reports[3].checksum, "and what was there before"
    for actor in engines.actors:
        ray.kill(actor.handle)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_relay_that_is_gone_ends_the_sync_by_its_deadline(relays, trainer, how):
    sync = SharedMemorySync(trainer, Crew("engine", lambda place: None, 0), [], TIMEOUT_S, relays)
    sync.publish(0)
    os.kill(relays[1].process().pid, how)
    started = time.monotonic()
    with pytest.raises(ActorDied, match=r"weight relay[\s\S]* to pass on weight version 1"):
        sync.publish(1)
    assert time.monotonic() - started < 4 * TIMEOUT_S, "the deadline, and a look at the stack"


def test_a_relay_says_that_another_is_gone(relays):
    os.kill(relays[0].process().pid, signal.SIGKILL)
    with pytest.raises(ActorDied, match=r"needs those of all nodes to pass on weight version 5: "):
        answer(relays[1], "pass_on", 5)


def test_a_relay_that_never_joins_is_not_waited_for_without_end(start_relays, tmp_path):
    (tmp_path / "weights").write_bytes(bytes(64))
    relays = start_relays(2, tmp_path / "weights")
    for relay in relays:
        answer(relay, "file")
    os.kill(relays[1].process().pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(ActorDied, match=r"weight relay[\s\S]* to join"):
        connect(relays, TIMEOUT_S)
    assert time.monotonic() - started < 4 * TIMEOUT_S


def test_a_relays_memory_is_given_back(start_relays):
    (killed,) = start_relays(1, None)
    left, pid = answer(killed, "file").parent, killed.process().pid
    assert left.is_dir()
    os.kill(pid, signal.SIGKILL)
    assert_soon(lambda: not Path(f"/proc/{pid}").exists())
    (closed,) = start_relays(1, None)
    own = answer(closed, "file").parent
    assert own.is_dir() and not left.exists(), "the next relay of the node clears away what a killed one left"
    close([killed, closed])
    assert not own.exists()


def assert_soon(is_true):
    deadline = time.monotonic() + 10
    while not is_true() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert is_true()


def test_where_all_engines_are_with_the_trainer_there_is_nothing_to_connect():
    connect([], TIMEOUT_S)
    close([])
