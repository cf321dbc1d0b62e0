"""What a resume compares with the attempt before it."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from actors.reward_worker import RewardSpec
from launch.inputs import Inputs
from rlhaiku import haiku
from rlhaiku.config import load_config
from rlhaiku.errors import BadInput
from rlhaiku.haiku.reward import HaikuReward
from rlhaiku.judge import JudgeSettings
from tests.tiny import make_prompt


def sea_words(prompt, text):
    return float("sea" in text)


PROMPTS = [make_prompt("cat"), make_prompt("dog")]
REWARD = RewardSpec(((HaikuReward(), 1.0),))
BEFORE = Inputs(load_config("laptop"), PROMPTS, REWARD)
FINGERPRINT = BEFORE.fingerprint()


def test_the_same_inputs_are_the_same():
    again = Inputs(load_config("laptop", ["output.keep_last=5", "cluster.wait_timeout_s=3"]), list(PROMPTS), REWARD)
    assert again.changed_since(BEFORE.fingerprint()) == []
    assert BEFORE.changed_since("") == [], "there was no attempt"
    assert BEFORE.changed_since("0123456789abcdef") == ["rlhaiku"], "an earlier version's fingerprint"


@pytest.mark.parametrize(("inputs", "changed"), [
    (replace(BEFORE, config=load_config("laptop", ["trainer.lr=1e-5"])), ["settings"]),
    (replace(BEFORE, reward=RewardSpec(((sea_words, 1.0),))), ["reward"]),
    (replace(BEFORE, reward=RewardSpec(((HaikuReward(), 0.5),))), ["reward"]),
    (replace(BEFORE, reward=replace(REWARD, judge=JudgeSettings("http://127.0.0.1", "a judge"))), ["judge"]),
], ids=["lr", "function", "weight", "judge"])
def test_what_changes_rewards_or_weights_is_named_but_allowed(inputs, changed):
    assert inputs.changed_since(BEFORE.fingerprint()) == changed
    assert inputs.fingerprint() != BEFORE.fingerprint()
    inputs.check_resumable(BEFORE.fingerprint())


def test_all_that_our_reward_stands_on_is_looked_at(tmp_path, monkeypatch):
    copied = shutil.copytree(Path(haiku.__file__).parent, tmp_path / "haiku", ignore=shutil.ignore_patterns("data"))
    monkeypatch.setattr(haiku, "__file__", str(copied / "__init__.py"))
    assert BEFORE.changed_since(FINGERPRINT) == []
    with (copied / "structure.py").open("a") as file:
        file.write("# another rule\n")
    assert BEFORE.changed_since(FINGERPRINT) == ["reward"]


@pytest.mark.parametrize(("inputs", "name"), [
    (replace(BEFORE, config=load_config("laptop", ["seed=1"])), "seed"),
    (replace(BEFORE, prompts=PROMPTS[::-1]), "data"),
    (replace(BEFORE, prompts=[PROMPTS[0], replace(PROMPTS[1], reference="a poem")]), "data"),
], ids=["seed", "order", "content"])
def test_what_would_give_claims_other_prompts_is_refused(inputs, name):
    with pytest.raises(BadInput, match=f"must have the {name} it began with.*new run"):
        inputs.check_resumable(BEFORE.fingerprint())
