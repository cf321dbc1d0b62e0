"""Waits on real Ray actors end, and say who waited for whom."""

import sys
import time

import pytest
import ray

from actors.crew import Crew
from actors.waiting import RayEvents, wait_for
from actors.weight_sync import SentWeights, SharedMemorySync
from rlhaiku.errors import ActorFailed, BatchEmpty, WaitTimeout, WeightMismatch
from rlhaiku.events import StepTrained

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file
pytestmark = pytest.mark.usefixtures("cluster")


class Worker:
    """Does as told."""

    def answer(self, value):
        return value

    def sleep(self, seconds):
        time.sleep(seconds)

    def fail(self, error):
        raise error

    def die(self):
        import os

        os._exit(1)


@pytest.fixture
def worker():
    actor = ray.remote(num_cpus=0)(Worker).remote()
    yield actor
    ray.kill(actor)


def test_values_arrive(worker):
    assert wait_for(worker.answer.remote(3), 30, "the worker") == 3
    assert wait_for([worker.answer.remote(i) for i in range(3)], 30, "the worker") == [0, 1, 2]


def test_silence_ends_with_the_name_of_the_silent(worker):
    with pytest.raises(WaitTimeout, match=r"the sleepy worker must answer within 0.2 s"):
        wait_for(worker.sleep.remote(1), 0.2, "the sleepy worker")


def test_our_own_errors_pass_through(worker):
    with pytest.raises(BatchEmpty, match="nothing left"):
        wait_for(worker.fail.remote(BatchEmpty("nothing left")), 30, "the worker")


def test_foreign_errors_name_the_actor(worker):
    with pytest.raises(ActorFailed, match=r"the worker raised:[\s\S]*ZeroDivisionError"):
        wait_for(worker.fail.remote(ZeroDivisionError("oh")), 30, "the worker")


def test_death_names_the_actor(worker):
    with pytest.raises(ActorFailed, match="the worker died"):
        wait_for(worker.die.remote(), 30, "the worker")


def test_events_come_in_order_of_arrival(worker):
    slow = ray.remote(num_cpus=0)(Worker).remote()
    events = RayEvents(timeout_s=30)
    events.expect(slow.sleep.remote(1.0), "the slow one", lambda _: StepTrained("slow"))
    events.expect(worker.answer.remote("quick"), "the quick one", StepTrained)
    assert [events.next("a step").stats for _ in range(2)] == ["quick", "slow"]
    ray.kill(slow)


def test_silence_of_all_names_everybody_outstanding(worker):
    events = RayEvents(timeout_s=0.2)
    events.expect(worker.sleep.remote(1), "rollout engine 1", StepTrained)
    with pytest.raises(WaitTimeout, match=r"groups of step 3 must arrive within 0.2 s; outstanding: rollout engine 1"):
        events.next("the scored groups of step 3")


def test_the_clock_stops_while_somebody_is_paused(worker):
    events, asked = RayEvents(timeout_s=0.1), []
    events.pause_while(lambda: asked.append(1) or len(asked) < 4)
    events.expect(worker.sleep.remote(30), "the waiting worker", StepTrained)
    with pytest.raises(WaitTimeout, match="the waiting worker"):
        events.next("scores")
    assert len(asked) == 4


def test_a_death_is_told_to_whoever_can_replace_the_dead(worker):
    events, told = RayEvents(timeout_s=30), []

    def on_death(death):
        told.append(death)
        events.deliver(StepTrained("by another"))

    events.expect(worker.die.remote(), "a mortal", StepTrained, on_death)
    assert events.next("a step").stats == "by another"
    assert "a mortal died" in str(told[0])


class Side:
    """A trainer and an engine that may disagree."""

    def __init__(self, checksum):
        self.checksum = checksum

    def send_weights(self, weight_version):
        return SentWeights(weight_version, self.checksum, 100)

    def receive_weights(self, weight_version):
        return self.checksum


def test_a_sync_is_verified_on_every_engine():
    remote = ray.remote(num_cpus=0, concurrency_groups={"control": 1})(Side)
    trainer = remote.remote(7)
    good = Crew("engine", lambda place: remote.remote(7), 2)
    mixed = Crew("engine", lambda place: remote.remote(7 + place), 2)
    published = []
    report = SharedMemorySync(trainer, good, published, 30).publish(4)
    assert (report.weight_version, report.checksum, report.num_bytes) == (4, 7, 100)
    assert published == [4]
    with pytest.raises(WeightMismatch, match="engine 1 must hold the trainer's version 5"):
        SharedMemorySync(trainer, mixed, published, 30).publish(5)
    ray.kill(good.handles[1])
    assert SharedMemorySync(trainer, good, published, 30).publish(6).checksum == 7
    assert good.replaced == 1
    for actor in (trainer, *good.handles, *mixed.handles):
        ray.kill(actor)
