"""Waits on real Ray actors end, and say who waited for whom."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import ray

from actors.actor import Actor
from actors.crew import MAX_DEATHS, Crew
from actors.waiting import RayEvents, wait_for
from actors.weight_sync import SentWeights, SharedMemorySync
from rlhaiku.errors import ActorDied, ActorFailed, BatchEmpty, CrashLoop, WaitTimeout, WeightMismatch
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

    def pid(self):
        import os

        return os.getpid()


class Broken:
    """Cannot even start."""

    def __init__(self):
        raise OSError("no such model")


@pytest.fixture
def start():
    """Starts a Worker under a name; all are gone at the end."""
    actors = []

    def start(name="the worker"):
        actors.append(Actor(name, ray.remote(num_cpus=0)(Worker).remote()))
        return actors[-1]

    yield start
    for actor in actors:
        ray.kill(actor.handle)


def test_values_arrive(start):
    worker = start()
    assert wait_for(worker.handle.answer.remote(3), 30, worker) == 3
    assert wait_for([worker.handle.answer.remote(i) for i in range(3)], 30, "the worker") == [0, 1, 2]


def test_silence_of_what_is_no_actor_ends_with_its_name(start):
    with pytest.raises(WaitTimeout, match=r"the sleepy worker, asked to nap, must answer within 0.2 s"):
        wait_for(start().handle.sleep.remote(1), 0.2, "the sleepy worker", "to nap")


def test_a_silent_actor_is_killed_and_its_stack_shown(start):
    worker = start("the sleepy worker")
    pid = wait_for(worker.handle.pid.remote(), 30, worker)
    with pytest.raises(ActorDied) as death:
        wait_for(worker.handle.sleep.remote(60), 0.5, worker, "to nap")
    assert f"the sleepy worker (pid {pid} on node " in str(death.value)
    assert "asked to nap, must answer within 0.5 s" in str(death.value)
    assert "sleep" in str(death.value).partition("It was here:")[2], "py-spy names the function"
    assert_gone(pid)


def test_our_own_errors_pass_through(start):
    worker = start()
    with pytest.raises(BatchEmpty, match="nothing left"):
        wait_for(worker.handle.fail.remote(BatchEmpty("nothing left")), 30, worker)


def test_foreign_errors_name_the_actor(start):
    worker = start()
    with pytest.raises(ActorFailed, match=r"the worker \(pid \d+ on node \w+\) raised:[\s\S]*ZeroDivisionError"):
        wait_for(worker.handle.fail.remote(ZeroDivisionError("oh")), 30, worker)


def test_death_names_the_actor(start):
    worker = start()
    with pytest.raises(ActorDied, match=r"the worker \(.*\), asked to die, died"):
        wait_for(worker.handle.die.remote(), 30, worker, "to die")


def test_an_actor_that_cannot_start_is_not_a_death():
    broken = Actor("the broken one", ray.remote(num_cpus=0)(Broken).remote())
    said = r"the broken one \(no process yet\) could not start[\s\S]*no such model"
    with pytest.raises(ActorFailed, match=said) as error:
        wait_for(broken.handle.__ray_ready__.remote(), 30, broken)
    assert not isinstance(error.value, ActorDied), "starting it again would not help"


def test_a_successor_that_cannot_start_died_and_in_the_end_is_a_crash_loop(start):
    crew = Crew("engine", lambda place: ray.remote(num_cpus=0)(Broken).remote(), 1)
    crew.actors[0] = start("engine 0")
    deaths = []
    with pytest.raises(CrashLoop, match="no such model"):
        crew.replace(crew.actors[0], ActorDied("the first"))
        while True:
            successor = crew.actors[0]
            with pytest.raises(ActorDied, match="no such model") as death:
                wait_for(successor.handle.__ray_ready__.remote(), 30, successor)
            deaths.append(death.value)
            crew.replace(successor, death.value)
    assert len(deaths) == MAX_DEATHS - 1


def test_events_come_in_order_of_arrival(start):
    slow, quick = start("the slow one"), start("the quick one")
    events = RayEvents(timeout_s=30)
    events.expect(slow.handle.sleep.remote(1.0), slow, "a nap", lambda _: StepTrained("slow"))
    events.expect(quick.handle.answer.remote("quick"), quick, "an answer", StepTrained)
    assert [events.next("a step").stats for _ in range(2)] == ["quick", "slow"]


def test_waiting_for_nobody_ends_at_once():
    with pytest.raises(WaitTimeout, match="step 3 must come from somebody; nobody has work"):
        RayEvents(timeout_s=30).next("step 3")


@pytest.mark.parametrize("stopped", [False, True], ids=["sleeping", "stopped"])
def test_an_actor_that_hangs_dies_the_death_of_a_dead_one(start, stopped):
    hanging, busy = start("rollout engine 1"), start("rollout engine 0")
    pid = wait_for(hanging.handle.pid.remote(), 30, hanging)
    events, told = RayEvents(timeout_s=1.5), []

    def on_death(death):
        told.append(str(death))
        events.deliver(StepTrained("by another"))

    if stopped:
        os.kill(pid, signal.SIGSTOP)
    events.expect(hanging.handle.sleep.remote(60), hanging, "3 groups with weight version 7", StepTrained, on_death)
    events.expect(busy.handle.answer.remote("quick"), busy, "an answer", StepTrained)
    assert [events.next("the scored groups of step 8").stats for _ in range(2)] == ["quick", "by another"]
    assert f"the scored groups of step 8: rollout engine 1 (pid {pid}" in told[0]
    for words in ("busy with 3 groups with weight version 7", "must give a sign within 1.5 s",
                  "Last event: StepTrained", "its stack was:", "cluster.wait_timeout_s"):
        assert words in told[0]
    assert_gone(pid)


def test_an_actor_that_goes_on_giving_signs_may_be_busy_for_longer_than_the_deadline(start):
    worker, events = start(), RayEvents(timeout_s=1.5)
    wait_for(worker.handle.answer.remote("up"), 30, worker)
    for i in range(4):
        events.expect(worker.handle.sleep.remote(0.8), worker, f"nap {i}", lambda _: StepTrained("rested"))
    assert [events.next("rest").stats for _ in range(4)] == ["rested"] * 4


def test_the_clock_stops_while_somebody_is_paused(start):
    worker, events, asked = start("the waiting worker"), RayEvents(timeout_s=0.2), []
    wait_for(worker.handle.answer.remote("up"), 30, worker, "to be up")
    events.pause_while(lambda: asked.append(1) or len(asked) < 4, lambda: [worker])
    events.expect(worker.handle.sleep.remote(60), worker, "a nap", StepTrained)
    with pytest.raises(ActorDied, match=r"the waiting worker[\s\S]*It last answered \d+ s ago, asked to be up"):
        events.next("scores")
    assert len(asked) >= 4


def test_a_death_is_told_to_whoever_can_replace_the_dead(start):
    worker, events, told = start("a mortal"), RayEvents(timeout_s=30), []

    def on_death(death):
        told.append(death)
        events.deliver(StepTrained("by another"))

    events.expect(worker.handle.die.remote(), worker, "dying", StepTrained, on_death)
    assert events.next("a step").stats == "by another"
    assert "a mortal" in str(told[0]) and "died" in str(told[0])


def test_deaths_that_repeat_in_one_place_end_the_run():
    crew = Crew("engine", lambda place: ray.remote(num_cpus=0)(Worker).remote(), 2)
    death = ActorDied("it fell over")
    for _ in range(MAX_DEATHS - 1):
        crew.replace(crew.actors[1], death)
    crew.replace(crew.actors[0], death)
    with pytest.raises(CrashLoop, match=r"engine 1 must not die 3 times in a row; the last time: it fell over"):
        crew.replace(crew.actors[1], death)
    for actor in crew.actors:
        ray.kill(actor.handle)


def assert_gone(pid):
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


class FakeWatcher:
    def __init__(self):
        self.deaths = []

    def died(self, name, why):
        self.deaths.append(why)

    def recovered(self, name, seconds, up_s):
        raise AssertionError("a sync is no work that was lost")


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
    trainer = Actor("the trainer", remote.remote(7))
    watcher = FakeWatcher()
    good = Crew("engine", lambda place: remote.remote(7), 2, watcher)
    mixed = Crew("engine", lambda place: remote.remote(7 + place), 2)
    published = []
    report = SharedMemorySync(trainer, good, published, 30).publish(4)
    assert (report.weight_version, report.checksum, report.num_bytes) == (4, 7, 100)
    assert published == [4]
    with pytest.raises(WeightMismatch, match="engine 1 must hold the trainer's version 5"):
        SharedMemorySync(trainer, mixed, published, 30).publish(5)
    good.actors[1].kill("a test")
    assert SharedMemorySync(trainer, good, published, 30).publish(6).checksum == 7
    assert watcher.deaths == ["a test"]
    for actor in (trainer, *good.actors, *mixed.actors):
        ray.kill(actor.handle)
