"""What a worker makes of functions, weights and a real judge server."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.reward_worker import RewardSpec, RewardTable, RewardWorker, mean_stats
from rlhaiku.haiku.reward import HaikuReward
from rlhaiku.judge import JudgeSettings
from rlhaiku.types import Scored, Unscored
from tests.judge_server import JudgeServer
from tests.tiny import make_prompt

GOOD = "an old silent pond\na frog jumps into the pond\nsplash! silence again"
BAD = "no haiku at all"


PROMPT = make_prompt("pond")


def poems(*texts):
    return [(PROMPT, text) for text in texts]


def judged(server_options, spec_options, *texts, reward=None):
    """Scores texts with a worker whose judge is a real server; returns rewards, stats and the server."""

    async def go():
        async with JudgeServer(**server_options) as server:
            settings = JudgeSettings(url=server.url, nonce_salt="1", **spec_options)
            worker = RewardWorker(RewardSpec(((reward or HaikuReward(), 1.0),), settings))
            table = await worker.score([(PROMPT, texts)])
            stats = await worker.stats()
            await worker._judge.close()
            return table.rewards(), stats, server

    return asyncio.run(go())


def test_functions_are_weighed_and_their_components_kept():
    functions = ((HaikuReward(), 2.0), (lambda prompt, text: Scored(3.0, {"mine": 3.0}), 0.5))
    rewards = RewardWorker(RewardSpec(functions)).rewards_now(poems(GOOD, BAD))
    assert rewards[0].total == pytest.approx(2.0 * 1.0 + 0.5 * 3.0)
    assert {"structure", "legitimacy", "mine"} <= set(rewards[0].components)


def test_one_function_that_fails_leaves_the_reward_unknown():
    def broken(prompt, text):
        raise KeyError("oh")

    rewards = RewardWorker(RewardSpec(((HaikuReward(), 1.0), (broken, 0.1)))).rewards_now(poems(GOOD))
    assert rewards == [Unscored("KeyError: 'oh'")]


def test_style_is_added_behind_the_gate():
    rewards, stats, server = judged({}, {}, GOOD, BAD)
    style = rewards[0].components["style"]
    assert 0 < style <= 1
    assert rewards[0].total == pytest.approx(1.0 + style)
    assert "style" not in rewards[1].components
    assert rewards[1].total < 1
    assert server.poems_asked() == [GOOD]
    assert stats["requests"] == stats["judged"] == 1


def test_an_open_gate_shows_every_poem_to_the_judge():
    rewards, _, server = judged({}, {}, GOOD, BAD, reward=HaikuReward(gate="off"))
    assert sorted(server.poems_asked()) == sorted([GOOD, BAD])
    assert all("style" in reward.components for reward in rewards)


def test_a_judge_that_stays_away_gives_unscored_never_zero():
    options = {"give_up_s": 0.2, "probe_interval_s": 0.05, "timeout_s": 0.5}
    rewards, stats, _ = judged({"always": "500"}, options, GOOD, BAD)
    assert isinstance(rewards[0], Unscored)
    assert "judge" in rewards[0].reason
    assert isinstance(rewards[1], Scored)
    assert stats["unjudged"] == 1


def test_failures_that_pass_leave_no_trace_in_the_rewards():
    calm, _, _ = judged({}, {}, GOOD)
    stormy, stats, _ = judged({"script": ["500", "reset", "half", "garbage"]}, {"probe_interval_s": 0.05}, GOOD)
    assert stormy == calm
    assert stats["retries"] >= 3


def test_counters_of_several_workers():
    one = {"requests": 2.0, "latency_p50_s": 1.0, "validity": 1.0}
    other = {"requests": 3.0, "latency_p50_s": 3.0, "validity": 0.5}
    assert mean_stats([one, {}, other]) == {"requests": 5.0, "latency_p50_s": 2.0, "validity": 0.75}
    assert mean_stats([{}, {}]) == {}


names = st.sampled_from(["structure", "style", "topic", ""])
totals = st.floats(allow_nan=False)
rewards = st.builds(Scored, totals, st.dictionaries(names, totals)) | st.builds(Unscored, st.text())


@given(st.lists(rewards))
def test_rewards_survive_the_way_to_the_pool(rewards):
    assert RewardTable.of(rewards).rewards() == rewards
