"""From settings and environment to what reward workers do, from modules that lie where the person is too; no Ray."""

import pickle
import re
import subprocess
import sys

import pytest

from launch.rewards import inline_below, reward_spec
from rlhaiku.config import load_config
from rlhaiku.errors import BadInput
from rlhaiku.haiku.reward import HaikuReward
from rlhaiku.judge.rubric import PromptRubric
from rlhaiku.types import Prompt

SCORE = "import pickle, sys; [_, (sea, weight)] = pickle.load(sys.stdin.buffer); print(weight, sea(None, 'sea sea'))"
FUNCTIONS = 'reward.functions={haiku = 1.0, "my_sea:sea_words" = 0.2}'


def length(prompt, text):
    return len(text)


def weather(topic, poem, reference):
    return f"{topic} {poem} 0-10?"


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes the spec of a run from overrides; the judge is set."""
    monkeypatch.setenv("LLM_JUDGE_URL", "http://127.0.0.1:9")
    return lambda *overrides, reward=None, rubric=None, directory=tmp_path: reward_spec(
        load_config("laptop", overrides), reward, rubric, directory
    )


@pytest.mark.parametrize(
    ("overrides", "reward"), [((), length), (('reward.functions={"test_rewards:length" = 1.0}',), None)]
)
def test_a_required_judge_that_nobody_would_ask_is_bad_input(make, overrides, reward):
    assert make(*overrides, reward=reward).judge is None
    with pytest.raises(BadInput, match=r"judge needs the `haiku` reward.*judge\.required=false"):
        make("judge.required=true", *overrides, reward=reward)


def test_a_required_judge_beside_a_reward_of_your_own(make, monkeypatch):
    spec = make("judge.required=true", reward=length, rubric=weather)
    assert isinstance(spec.functions[0][0], HaikuReward) and spec.functions[1] == (length, 1.0)
    assert spec.judge and isinstance(spec.rubric, PromptRubric)
    monkeypatch.delenv("LLM_JUDGE_URL")
    with pytest.raises(BadInput, match="LLM_JUDGE_URL"):
        make("judge.required=true", reward=length, rubric=weather)


def test_a_reward_of_your_own_replaces_functions_that_need_not_exist(make):
    overrides = ('reward.functions={"no_such_module:x" = 1.0}', "reward.timeout_s=7")
    spec = make(*overrides, reward=length)
    assert spec.functions == ((length, 1.0),) and spec.timeout_s == 7
    with pytest.raises(BadInput, match="no_such_module"):
        make(*overrides)


def test_settings_of_the_judge_reach_the_client(make):
    numbers = {"max_tries": 9, "max_asks": 1, "give_up_s": 5.0, "poems_per_request": 2, "max_concurrency": 3}
    spec = make("judge.usd_per_million=[0.5, 2.0]", *[f"judge.{name}={value}" for name, value in numbers.items()])
    assert {name: getattr(spec.judge, name) for name in numbers} == numbers
    assert spec.judge.usd_per_million == (0.5, 2.0)


def test_fences_are_random_for_each_run_and_the_same_when_it_is_resumed(make, tmp_path):
    one, again = make(directory=tmp_path / "one"), make(directory=tmp_path / "one")
    other = make("seed=0", directory=tmp_path / "other")
    assert one.judge.nonce_salt == again.judge.nonce_salt != other.judge.nonce_salt
    assert re.fullmatch("[0-9a-f]{32}", one.judge.nonce_salt)
    assert one.judge.nonce_salt not in repr(one), "it is not shown"


def test_a_check_leaves_nothing_behind(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert make(directory=None).judge and not list(tmp_path.iterdir())


def test_a_judge_may_not_take_longer_than_anybody_may_be_silent(make, monkeypatch):
    monkeypatch.setenv("LLM_JUDGE_TIMEOUT", "600")
    with pytest.raises(BadInput, match=r"LLM_JUDGE_TIMEOUT must be below cluster\.wait_timeout_s \(600\)"):
        make()
    assert make("cluster.wait_timeout_s=601").judge.timeout_s == 600


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


def test_where_workers_have_cores_of_their_own_they_score_more(make, monkeypatch):
    assert inline_below(make(), cores=2) == 0, "a judge is waited for elsewhere"
    monkeypatch.delenv("LLM_JUDGE_URL")
    assert inline_below(make(), cores=2) == 2048 and inline_below(make(), cores=32) == 64
    assert inline_below(make(reward=length), cores=2) == 0, "nobody knows how long somebody's function takes"
