"""What a worker makes of functions, weights and a real judge server."""

import asyncio
import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.reward_worker import MOST_LEFT_BEHIND, RewardSpec, RewardTable, RewardWorker, merge_stats
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
    options = {"give_up_s": 0.2, "probe_interval_s": 0.05, "breaker_failures": 1}
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
    one = {"requests": 2.0, "answers": 30.0, "latency_p50_s": 1.0, "latency_p99_s": 2.0, "validity": 1.0}
    other = {"requests": 3.0, "answers": 10.0, "latency_p50_s": 3.0, "latency_p99_s": 9.0, "validity": 0.5}
    merged = {"requests": 5.0, "answers": 40.0, "latency_p50_s": 1.5, "latency_p99_s": 9.0, "validity": 0.875}
    assert merge_stats([one, {}, other]) == merged
    assert merge_stats([one | {"answers": 0.0}])["validity"] == 1.0
    assert merge_stats([{}, {}]) == {}


def paused(spec, *texts, after_s=0.3, **server_options):
    """Whether a worker says that it is paused: before, twice while it scores `texts`, and twice when it is done."""

    async def go():
        async with JudgeServer(**server_options) as server:
            worker = RewardWorker(spec(server.url))
            before = await worker.is_paused()
            scoring = asyncio.ensure_future(worker.score([(PROMPT, texts)]))
            await asyncio.sleep(after_s)
            during = [await worker.is_paused(), await worker.is_paused()]
            await asyncio.wait_for(scoring, 30)
            done = [await worker.is_paused(), await worker.is_paused()]
            if worker._judge:
                await worker._judge.close()
            return before, during, done

    return asyncio.run(go())


def asks(**settings):
    return lambda url: RewardSpec(((HaikuReward(gate="off"), 1.0),), JudgeSettings(url, **settings))


def test_a_judge_that_asks_for_patience_or_is_away_pauses():
    throttled = paused(asks(give_up_s=1.0), GOOD, always="429", retry_after="3600")
    away = paused(asks(give_up_s=1.5, probe_interval_s=0.1, breaker_failures=1), GOOD, always="500", after_s=1.0)
    for before, during, _ in (throttled, away):
        assert not before and during == [True, True]


def test_a_judge_that_is_slow_pauses_as_long_as_it_moves():
    texts = [f"{GOOD} {i}" for i in range(6)]
    before, during, done = paused(asks(max_concurrency=1, poems_per_request=1), *texts, per_poem_s=0.2)
    assert not before and during == [True, False] and done == [True, False]


def test_a_judge_that_is_silent_does_not_pause():
    _, during, _ = paused(asks(max_concurrency=1), GOOD, latency_s=0.6)
    assert during == [True, False], "after the request was sent nothing has moved"


def test_a_function_of_your_own_pauses_while_it_works():
    def slow(prompt, text):
        time.sleep(0.2)
        return 1.0

    before, during, done = paused(lambda url: RewardSpec(((slow, 1.0),)), "a", "b", "c", after_s=0.1)
    assert (before, during, done) == (False, [True, True], [False, False])


def test_a_worker_with_too_many_threads_left_behind_ends_itself(monkeypatch):
    over, exits = threading.Event(), []
    monkeypatch.setattr(os, "_exit", exits.append)

    def hanging(prompt, text):
        return over.wait(60) and 1.0 if "h" in text else 1.0

    async def go():
        worker = RewardWorker(RewardSpec(((hanging, 1.0),), timeout_s=0.05))
        for _ in range(MOST_LEFT_BEHIND):
            table = await worker.score([(PROMPT, ("a", "h", "b"))])
            assert list(table.reasons) == [1] and not exits
        await worker.score([(PROMPT, ("a",))])

    asyncio.run(go())
    over.set()
    assert exits == [1]


def test_rewards_without_a_worker_are_checked_too():
    rewards = RewardWorker(RewardSpec(((lambda prompt, text: float(text), 1.0),))).rewards_now(poems("1", "nan", "x"))
    assert [type(reward) for reward in rewards] == [Scored, Unscored, Unscored]


names = st.sampled_from(["structure", "style", "topic", ""])
totals = st.floats(allow_nan=False)
rewards = st.builds(Scored, totals, st.dictionaries(names, totals)) | st.builds(Unscored, st.text())


@given(st.lists(rewards))
def test_rewards_survive_the_way_to_the_pool(rewards):
    assert RewardTable.of(rewards).rewards() == rewards
