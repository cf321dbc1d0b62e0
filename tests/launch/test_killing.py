"""Who is killed when, without Ray: stand-ins write down that they were struck."""

import threading
import time

import pytest

from launch import chaos
from launch.chaos import killing


class StandIn:
    """An actor that can be struck, unless it has no process yet."""

    def __init__(self, name, struck, is_up=True):
        self.name, self.struck, self.is_up = name, struck, is_up

    def strike(self):
        if self.is_up:
            self.struck.append(self.name)
        return self.is_up


def victims(seed, count, monkeypatch):
    monkeypatch.setattr(chaos, "MEAN_S", 0.002)
    struck = []
    actors = [StandIn(name, struck, is_up=name != "starting") for name in ("a", "starting", "b", "c")]
    deadline = time.monotonic() + 20
    with killing(lambda: actors, seed):
        while len(struck) < count and time.monotonic() < deadline:
            time.sleep(0.005)
    assert not [thread for thread in threading.enumerate() if thread.name == "chaos"], "it ends with the context"
    return struck[:count]


def test_the_same_seed_has_the_same_victims(monkeypatch):
    first = victims(7, 12, monkeypatch)
    assert len(first) == 12 and set(first) == {"a", "b", "c"}
    assert victims(7, 12, monkeypatch) == first
    assert victims(8, 12, monkeypatch) != first


def test_without_a_seed_nobody_is_killed():
    with killing(lambda: pytest.fail("nobody is asked for"), None):
        assert not [thread for thread in threading.enumerate() if thread.name == "chaos"]
