"""A judged run on real Ray and real HTTP: the judge goes away in the middle, and nothing changes but the time."""

import json
import threading
import time

import pytest
import torch

from launch.local import run
from rlhaiku.config import with_overrides
from rlhaiku.errors import BadInput
from rlhaiku.judge import JudgeRefused
from tests.judge_server import ServerThread

OUTAGE_S = 5.0


@pytest.fixture
def judge(monkeypatch):
    with ServerThread() as server:
        monkeypatch.setenv("LLM_JUDGE_URL", server.url)
        yield server


@pytest.fixture
def judged_config(config):
    # A tiny model writes no haiku, so the gate is open for all; without the cache every run must ask again.
    return with_overrides(config, ["reward.gate=off", "judge.cache=false", "num_steps=3"])


def final_weights(directory):
    return torch.load(directory / "checkpoints" / "step-000003" / "trainer.pt", weights_only=True)["weights"]


def rows(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_an_outage_in_the_middle_changes_nothing(cluster, judged_config, judge, tmp_path, capfd):
    run(judged_config, output_dir=tmp_path / "calm")

    def break_down():
        while not (tmp_path / "stormy" / "metrics.jsonl").exists():
            time.sleep(0.005)
        judge.always = "reset"
        time.sleep(OUTAGE_S)
        judge.always = ""

    breaker = threading.Thread(target=break_down)
    breaker.start()
    run(judged_config, output_dir=tmp_path / "stormy")
    breaker.join()
    calm, stormy = final_weights(tmp_path / "calm"), final_weights(tmp_path / "stormy")
    assert all(torch.equal(calm[name], stormy[name]) for name in calm)
    last = rows(tmp_path / "stormy")[-1]
    assert last["judge/outages"] >= 1
    assert last["judge/seconds_open"] > OUTAGE_S / 2
    assert last["reward/unscored"] == 0
    assert rows(tmp_path / "calm")[-1]["judge/outages"] == 0
    assert "judge: qwen3-4b at" in capfd.readouterr().out


def test_judgements_are_kept_in_the_run_directory(cluster, judged_config, judge, tmp_path):
    config = with_overrides(judged_config, ["judge.cache=true", "num_steps=1"])
    run(config, output_dir=tmp_path / "run")
    assert (tmp_path / "run" / "judge.sqlite").exists()
    assert rows(tmp_path / "run")[-1]["judge/judged"] > 0


def test_a_rubric_of_your_own_as_a_plain_function(cluster, judged_config, judge, tmp_path):
    def build_prompt(topic, poem, reference):
        return f"Rate this text about {topic} from 0 to 10, number only: {poem}"

    run(with_overrides(judged_config, ["num_steps=1"]), rubric=build_prompt, output_dir=tmp_path / "run")
    assert "Rate this text about" in judge.bodies[0]["messages"][-1]["content"]
    assert rows(tmp_path / "run")[-1]["reward/style"] > 0


def test_a_judge_that_refuses_ends_the_run(cluster, judged_config, judge, tmp_path):
    judge.always = "401"
    with pytest.raises(JudgeRefused, match="401"):
        run(judged_config, output_dir=tmp_path / "run")


def test_a_required_judge_that_is_not_there_is_bad_input(judged_config, monkeypatch, tmp_path):
    monkeypatch.delenv("LLM_JUDGE_URL", raising=False)
    with pytest.raises(BadInput, match="LLM_JUDGE_URL"):
        run(with_overrides(judged_config, ["judge.required=true"]), output_dir=tmp_path / "run")
