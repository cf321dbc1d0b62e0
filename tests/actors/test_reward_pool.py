"""The pool over real Ray actors: everything submitted comes back once, whoever dies on the way."""

import os
import sys
import time
from collections import Counter

import pytest
import ray

from actors.crew import Crew
from actors.reward_pool import RewardPool
from actors.reward_worker import INLINE_BELOW, RewardSpec, RewardWorker
from actors.waiting import RayEvents
from rlhaiku.errors import CrashLoop
from rlhaiku.haiku.reward import HaikuReward
from rlhaiku.judge import JudgeSettings
from rlhaiku.types import Scored
from tests.judge_server import ServerThread
from tests.tiny import make_scored

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file
pytestmark = pytest.mark.usefixtures("cluster")


def length(prompt, text):
    return len(text)


def slow(prompt, text):
    time.sleep(0.05)
    return len(text)


def groups(count, size=4):
    return [make_scored(claim, [0.0] * size).group for claim in range(count)]


@pytest.fixture
def make_pool():
    crews = []

    def make(reward=length, workers=2, timeout_s=60, judge=None, **options):
        events, started = RayEvents(timeout_s), []
        spec = RewardSpec(((reward, 1.0),), judge, timeout_s=0.2)

        def spawn(index):
            started.append(index)
            return ray.remote(num_cpus=0)(RewardWorker).remote(spec)

        crew = Crew("reward worker", spawn, workers)
        crews.append(crew)
        return RewardPool(crew, events, **options), events, started

    yield make
    for crew in crews:
        for worker in crew.actors:
            ray.kill(worker.handle)


def collect(events, count):
    scored = []
    while len(scored) < count:
        scored += events.next("scores").groups
    return scored


def test_everything_comes_back_once(make_pool):
    pool, events, _ = make_pool(workers=3)
    for start in range(0, 30, 10):
        pool.submit(groups(30)[start : start + 10])
    scored = collect(events, 30)
    assert Counter(s.key.claim for s in scored) == Counter(range(30))
    for each in scored:
        assert each.rewards == tuple(Scored(float(len(c.text))) for c in each.group.completions)


def test_a_worker_killed_in_the_middle_loses_and_doubles_nothing(make_pool):
    pool, events, started = make_pool(slow, workers=2)
    pool.submit(groups(20))
    time.sleep(0.5)
    ray.kill(pool._workers.actors[0].handle)
    scored = collect(events, 20)
    assert Counter(s.key.claim for s in scored) == Counter(range(20))
    assert sorted(started) == [0, 0, 1]


def test_what_kills_every_worker_ends_the_run(make_pool):
    def deadly(prompt, text):
        os._exit(1)

    pool, events, started = make_pool(deadly, workers=1)
    pool.submit(groups(2))
    with pytest.raises(CrashLoop, match="reward worker 0 must not die 3 times in a row"):
        events.next("scores")
    assert started == [0, 0, 0]


def test_poems_that_a_reward_hangs_on_are_unscored_and_workers_replaced(make_pool):
    def hangs_now_and_then(prompt, text):
        if text.startswith("poem 1"):
            time.sleep(3600)
        return len(text)

    pool, events, started = make_pool(hangs_now_and_then, workers=1, timeout_s=2)
    for start in range(0, 12, 4):
        pool.submit(groups(12)[start : start + 4])
        for scored in collect(events, 4):
            assert [isinstance(reward, Scored) for reward in scored.rewards] == [True, False, True, True]
    assert started == [0, 0], "eight threads were left behind; nobody was killed for being silent"


@pytest.mark.parametrize("trouble", ["asks for an hour", "is slow"])
def test_a_judge_may_keep_poems_for_longer_than_anybody_may_be_silent(make_pool, trouble):
    with ServerThread() as server:
        server.always, server.retry_after = ("429", "3600") if trouble == "asks for an hour" else ("", "1")
        server.per_poem_s = 0.5
        judge = JudgeSettings(server.url, max_concurrency=1, poems_per_request=1, give_up_s=4.0)
        pool, events, started = make_pool(HaikuReward(gate="off"), 1, timeout_s=1.5, judge=judge, has_judge=True)
        pool.submit(groups(2))
        rewards = [reward for scored in collect(events, 2) for reward in scored.rewards]
    assert started == [0], "the worker was silent for 4 s, and nobody killed it"
    if trouble == "is slow":
        assert all("style" in reward.components for reward in rewards)
    else:
        assert all("throttled for" in reward.reason for reward in rewards)


def test_small_submissions_are_scored_in_this_process(make_pool):
    worker = RewardWorker(RewardSpec(((length, 1.0),)))
    pool, events, _ = make_pool(inline=worker)
    pool.submit(groups(1, size=INLINE_BELOW - 1))
    assert not events._pending
    assert len(collect(events, 1)[0].rewards) == INLINE_BELOW - 1
    pool.submit(groups(1, size=INLINE_BELOW))
    assert events._pending
    assert len(collect(events, 1)[0].rewards) == INLINE_BELOW


def test_without_a_judge_nothing_is_counted_and_nothing_pauses(make_pool):
    pool, _, _ = make_pool()
    assert pool.stats() == {}
    assert not pool.is_paused()
