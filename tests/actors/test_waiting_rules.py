"""Who is waited for how long, and who is struck, on a stand-in of Ray whose calls take the time they are told to."""

import subprocess
import time
from types import SimpleNamespace

import pytest
from ray.exceptions import GetTimeoutError, RayActorError

from actors import actor as actor_module
from actors import crew as crew_module
from actors import waiting
from actors.actor import Actor, Process
from actors.crew import Crew
from actors.waiting import RayEvents, wait_for
from actors.weight_sync import SentWeights, SharedMemorySync
from rlhaiku.errors import ActorDied
from rlhaiku.events import StepTrained

NODE = "0a1b2c3d"


class Call:
    """A reference whose value comes after some seconds, unless its actor is gone by then."""

    def __init__(self, handle, value, seconds):
        self.handle, self.value, self.ready_s = handle, value, time.monotonic() + seconds


class Handle:
    """A handle of an actor that starts for `start_s` seconds, and then answers whatever it is asked at once."""

    def __init__(self, start_s=0.0, pid=1, **answers):
        self.up_s, self.pid, self.answers, self.is_dead = time.monotonic() + start_s, pid, answers, False
        self.__ray_call__ = SimpleNamespace(remote=lambda _: self.call(Process(pid, NODE, time.time() + start_s)))
        self.__ray_ready__ = SimpleNamespace(remote=lambda: self.call(None))

    def call(self, value, seconds=0.0):
        return Call(self, value, max(0.0, self.up_s - time.monotonic()) + seconds)

    def __getattr__(self, name):
        method = SimpleNamespace(remote=lambda *arguments: self.call(self.answers[name]))
        method.options = lambda **options: method
        return method


@pytest.fixture(autouse=True)
def fake_ray(monkeypatch):
    """Stands in for the module wherever waits go through it."""
    def get(call, timeout):
        if call.handle.is_dead:
            raise RayActorError
        left_s = call.ready_s - time.monotonic()
        time.sleep(max(0.0, min(left_s, timeout)))
        if left_s > timeout:
            raise GetTimeoutError
        return call.value

    def wait(calls, num_returns, timeout):
        deadline = time.monotonic() + timeout
        while True:
            ready = [c for c in calls if c.handle.is_dead or c.ready_s <= time.monotonic()]
            if ready or time.monotonic() > deadline:
                return ready[:1], calls
            time.sleep(0.005)

    fake = SimpleNamespace(
        get=get, wait=wait, kill=lambda handle: setattr(handle, "is_dead", True),
        get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: NODE),
    )
    for module in (waiting, actor_module, crew_module):
        monkeypatch.setattr(module, "ray", fake)
    monkeypatch.setattr(actor_module, "LOOK_UP_S", 0.02)


def test_a_pause_ends_and_is_not_for_others():
    """A judge that was given up stays away for good: nobody may hang behind it for as long."""
    worker, trainer = Actor("reward worker 0", Handle()), Actor("the trainer", Handle())
    events, died = RayEvents(timeout_s=0.1, longest_pause_s=0.8), []
    events.pause_while(lambda: True, lambda: [worker])
    for actor in (worker, trainer):
        def on_death(death, actor=actor):
            died.append(str(death))
            events.deliver(StepTrained(actor.name))

        events.expect(actor.handle.call("late", seconds=60), actor, "a nap", StepTrained, on_death)
    begun = time.monotonic()
    assert events.next("a step").stats == "the trainer"
    assert events.next("scores").stats == "reward worker 0"
    assert time.monotonic() - begun > 0.8
    assert "reward worker 0 (pid 1 on node 0a1b2c3d), busy with a nap" in died[1]


def test_whoever_goes_on_finishing_things_may_be_paused_again():
    worker, events = Actor("reward worker 0", Handle()), RayEvents(timeout_s=0.1, longest_pause_s=0.8)
    events.pause_while(lambda: True, lambda: [worker])
    for i in range(1, 4):
        events.expect(worker.handle.call(i, seconds=0.4 * i), worker, f"poems {i}", StepTrained)
    assert [events.next("scores").stats for _ in range(3)] == [1, 2, 3]


def test_whoever_moves_inside_a_call_is_slow_and_not_hanging():
    """A reward of a user's may take a minute a poem, and a call has hundreds of poems."""
    worker, events, begun = Actor("reward worker 0", Handle()), RayEvents(0.1, longest_pause_s=0.4), time.monotonic()
    events.pause_while(lambda: True, lambda: [worker], signs=lambda: int((time.monotonic() - begun) / 0.2))
    events.expect(worker.handle.call("scores", seconds=1.6), worker, "poems", StepTrained)
    assert events.next("scores").stats == "scores"


def test_something_else_is_done_only_where_there_would_be_a_wait():
    worker, events, done = Actor("reward worker 0", Handle()), RayEvents(timeout_s=5), []
    events.expect(worker.handle.call("slow", seconds=0.3), worker, "a nap", StepTrained)
    events.deliver(StepTrained("delivered"))
    assert events.next("scores", lambda: done.append("too early")).stats == "delivered"
    assert events.next("scores", lambda: done.append(time.monotonic())).stats == "slow"
    assert done and isinstance(done[0], float)
    events.expect(worker.handle.call("there"), worker, "a moment", StepTrained)
    assert events.next("scores", lambda: done.append("too early")).stats == "there"
    assert "too early" not in done


@pytest.mark.parametrize(("soon_s", "expected"), [(20.0, []), (0.02, ["meanwhile"])])
def test_something_else_is_done_only_where_nothing_comes_soon(monkeypatch, soon_s, expected):
    monkeypatch.setattr(waiting, "SOON_S", soon_s)
    worker, events, done = Actor("reward worker 0", Handle()), RayEvents(timeout_s=5), []
    events.expect(worker.handle.call("slow", seconds=0.3), worker, "a nap", StepTrained)
    assert events.next("scores", lambda: done.append("meanwhile")).stats == "slow"
    assert done == expected


def test_what_was_finished_last_is_said_of_the_silent_and_of_the_dead():
    worker = Actor("the worker", Handle())
    events = RayEvents(timeout_s=5)
    events.expect(worker.handle.call(1), worker, "8 groups with weight version 3", StepTrained)
    events.next("a step")
    last = r"It last answered 0 s ago, asked for 8 groups with weight version 3\."
    with pytest.raises(ActorDied, match=rf"asked to nap, must answer within 0\.01 s[\s\S]*{last}"):
        wait_for(worker.handle.call(1, seconds=60), 0.01, worker, "to nap")
    worker.killed_because = ""
    with pytest.raises(ActorDied, match=rf"asked to nap, died[\s\S]*{last}"):
        wait_for(worker.handle.call(1), 5, worker, "to nap")
    with pytest.raises(ActorDied, match="It has answered nothing yet"):
        wait_for(worker.handle.call(1), 5, Actor("another", worker.handle), "to nap")


def test_an_engine_that_starts_inside_a_sync_may_load_its_model():
    trainer = Actor("the trainer", Handle(send_weights=SentWeights(4, 7, 100)))
    engines = Crew("engine", lambda place: Handle(start_s=1.0, receive_weights=7), 1)
    report = SharedMemorySync(trainer, engines, [], timeout_s=0.2).publish(4)
    assert (report.checksum, report.seconds > 0.9) == (7, True)


def test_recovery_is_told_with_and_without_the_start_of_a_process():
    told = []
    watcher = SimpleNamespace(died=lambda *_: None, recovered=lambda *arguments: told.append(arguments))
    crew = Crew("engine", lambda place: Handle(start_s=0.3), 1, watcher)
    dead = crew.actors[0]
    crew.replace(dead, ActorDied("it fell over"))
    assert dead.handle.is_dead, "whose connection was lost must not work beside its successor"
    time.sleep(0.5)
    crew.worked(0)
    ((name, seconds, up_s),) = told
    assert name == "engine 0"
    assert 0.5 < seconds < 5
    assert up_s == pytest.approx(seconds - 0.3, abs=0.2)


def test_only_the_process_of_an_actor_on_this_node_is_struck():
    def process(title):
        return subprocess.Popen(["bash", "-c", f"exec -a {title} sleep 60"])

    with process("ray::Worker.generate") as ours, process("stranger") as stranger:
        time.sleep(0.3)  # until both are called what they are called
        assert not Actor("the number was given away", Handle(pid=stranger.pid)).strike()
        elsewhere = Actor("on another node", Handle(pid=ours.pid))
        elsewhere._process = Process(ours.pid, "another", 0.0)
        assert not elsewhere.strike()
        assert not Actor("starting", Handle(start_s=60, pid=ours.pid)).strike()
        assert (ours.poll(), stranger.poll()) == (None, None)
        assert Actor("the worker", Handle(pid=ours.pid)).strike()
        assert ours.wait(10) == -9
        assert not Actor("the worker", Handle(pid=ours.pid)).strike()
        stranger.kill()
