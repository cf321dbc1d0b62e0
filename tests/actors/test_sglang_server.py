"""What an engine's server is started with."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from actors.engines.sglang_server import MOST_OF_FREE, share_of_free


class DriverError(Exception):
    """As pynvml raises it."""


@pytest.fixture
def card(monkeypatch):
    """A card of 80 GB as the driver tells of it; a test says how much is free."""
    memory = SimpleNamespace(total=80e9, free=80e9)
    driver = ModuleType("pynvml")
    driver.NVMLError = DriverError
    driver.nvmlInit = lambda: None
    driver.nvmlDeviceGetHandleByIndex = {3: "a handle"}.__getitem__
    driver.nvmlDeviceGetMemoryInfo = {"a handle": memory}.__getitem__
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    return memory


@pytest.mark.parametrize(("free", "expected"), [(80e9, 0.3), (40e9, 0.6), (20e9, MOST_OF_FREE)])
def test_a_successor_takes_as_many_bytes_as_the_first(card, free, expected):
    card.free = free
    assert share_of_free(0.3, 3) == pytest.approx(expected)


def test_without_a_driver_the_share_stays(card, monkeypatch):
    def fail():
        raise DriverError

    monkeypatch.setattr(sys.modules["pynvml"], "nvmlInit", fail)
    assert share_of_free(0.3, 3) == 0.3
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert share_of_free(0.3, 3) == 0.3
