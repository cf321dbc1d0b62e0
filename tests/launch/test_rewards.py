"""Rewards named on the command line, from modules that lie where the person is."""

import pickle
import subprocess
import sys

import pytest

from launch.rewards import reward_spec
from rlhaiku.config import load_config
from rlhaiku.errors import BadInput
from rlhaiku.types import Prompt

SCORE = "import pickle, sys; [_, (sea, weight)] = pickle.load(sys.stdin.buffer); print(weight, sea(None, 'sea sea'))"
FUNCTIONS = 'reward.functions={haiku = 1.0, "my_sea:sea_words" = 0.2}'


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with a module of one's own, as the `rlhaiku` script sees it: not on Python's path."""
    (tmp_path / "my_sea.py").write_text("def sea_words(prompt, text):\n    return text.count('sea')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    monkeypatch.setenv("PYTHONPATH", "")
    yield tmp_path
    sys.modules.pop("my_sea", None)


def test_a_module_in_the_working_directory_is_found_here_and_by_actors(here):
    spec = reward_spec(load_config("laptop", [FUNCTIONS]), None, None, here)
    [(haiku, one), (sea_words, weight)] = spec.functions
    assert (one, weight) == (1.0, 0.2)
    assert haiku(Prompt("p", "sea", "", ()), "sea").total < 1 and sea_words(None, "sea") == 1
    worker = [sys.executable, "-c", SCORE]  # another process with this one's environment, as an actor is
    done = subprocess.run(worker, input=pickle.dumps(spec.functions), cwd="/", capture_output=True, check=False)
    assert done.stdout == b"0.2 2\n", done.stderr


@pytest.mark.parametrize("name", ["no_such_module:f", "my_sea:no_such_function", "my_sea"])
def test_what_cannot_be_imported_is_bad_input(here, name):
    with pytest.raises(BadInput, match=r"reward\.functions"):
        reward_spec(load_config("laptop", [f'reward.functions={{"{name}" = 1.0}}']), None, None, here)
