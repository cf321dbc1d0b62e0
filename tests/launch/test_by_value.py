"""Functions that travel as text."""

import sys

import pytest

from launch import by_value as module
from launch.by_value import by_value, from_value
from rlhaiku.errors import BadInput

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture(autouse=True)
def image(monkeypatch):
    """An image with this Python."""
    monkeypatch.setenv("RLHAIKU_PYTHON", HERE)


def test_a_function_arrives():
    assert from_value("") == {}
    things = from_value(by_value(reward=lambda text: len(text)))
    assert things["reward"]("four") == 4


def test_another_python_is_refused_before_the_launch(monkeypatch):
    monkeypatch.setenv("RLHAIKU_PYTHON", "3.99")
    with pytest.raises(BadInput, match=rf"'{HERE} here, 3\.99 there'. Start this from a Python 3\.99"):
        by_value(reward=len)


def test_another_python_is_refused_on_arrival(monkeypatch):
    text = by_value(reward=lambda text: len(text))
    monkeypatch.setattr(module, "_python", lambda: "3.99")
    with pytest.raises(BadInput, match="equal Pythons"):
        from_value(text)


def test_an_import_that_is_not_there_is_bad_input(tmp_path, monkeypatch):
    (tmp_path / "mine_alone.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import mine_alone

    def reward(text):
        return mine_alone.VALUE

    text = by_value(reward=reward)
    monkeypatch.undo()
    del sys.modules["mine_alone"]
    monkeypatch.setenv("RLHAIKU_PYTHON", HERE)
    with pytest.raises(BadInput, match="No module named 'mine_alone'"):
        from_value(text)
