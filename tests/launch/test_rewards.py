"""From settings and environment to what reward workers do; no Ray."""

import re

import pytest

from launch.rewards import reward_spec
from rlhaiku.config import load_config
from rlhaiku.errors import BadInput
from rlhaiku.haiku.reward import HaikuReward
from rlhaiku.judge.rubric import PromptRubric


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


def test_a_judge_may_not_take_longer_than_anybody_may_be_silent(make, monkeypatch):
    monkeypatch.setenv("LLM_JUDGE_TIMEOUT", "600")
    with pytest.raises(BadInput, match=r"LLM_JUDGE_TIMEOUT must be below cluster\.wait_timeout_s \(600\)"):
        make()
    assert make("cluster.wait_timeout_s=601").judge.timeout_s == 600
