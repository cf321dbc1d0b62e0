"""What becomes of a user's reward function, whatever it does; no Ray."""

import asyncio
import sys
import threading
import time

import numpy as np
import pytest

from actors.user_reward import HANGS_IN_A_ROW, UserReward
from rlhaiku.errors import RunFailed
from rlhaiku.types import Scored, Unscored
from tests.tiny import make_prompt

PROMPT = make_prompt("pond")


def score(function, *texts, timeout_s=30.0):
    """The rewards of `texts`, and the UserReward that gave them."""
    user = UserReward(function, timeout_s)
    return asyncio.run(asyncio.wait_for(user.score([(PROMPT, text) for text in texts]), 60)), user


def as_async(function):
    async def reward(prompt, text):
        await asyncio.sleep(0)
        return function(prompt, text)

    return reward


@pytest.fixture
def hang():
    """A reward that hangs on texts with an h until the test is over."""
    over = threading.Event()

    def reward(prompt, text):
        if "h" in text:
            over.wait(60)
        return 1.0

    yield reward
    over.set()


@pytest.mark.parametrize("given", [2, 2.0, True, np.float32(2.0), np.int64(2), Scored(2.0, {"mine": 1.0})])
@pytest.mark.parametrize("kind", [lambda function: function, as_async])
def test_numbers_and_rewards_are_taken(given, kind):
    [reward], _ = score(kind(lambda prompt, text: given), "a")
    assert reward == (given if isinstance(given, Scored) else Scored(float(given)))


NO_REWARDS = [None, "2", "nonsense", [2], float("nan"), float("inf"), 10**400]
PARTS = [{"a": float("inf")}, {"a": "b"}, None]
BROKEN = [Scored(float("nan")), Scored(None), *[Scored(1.0, parts) for parts in PARTS]]


@pytest.mark.parametrize("given", NO_REWARDS + BROKEN)
@pytest.mark.parametrize("kind", [lambda function: function, as_async])
def test_what_is_no_finite_number_is_unscored(given, kind):
    [one, reward], _ = score(kind(lambda prompt, text: 1.0 if text == "a" else given), "a", "b")
    assert one == Scored(1.0)
    assert isinstance(reward, Unscored) and ("finite" in reward.reason or "Error: " in reward.reason)


@pytest.mark.parametrize("kind", [lambda function: function, as_async])
def test_what_raises_is_unscored(kind):
    def reward(prompt, text):
        return {"a": 1.0}[text]

    assert score(kind(reward), "a", "b")[0] == [Scored(1.0), Unscored("KeyError: 'b'")]


def test_a_function_that_wants_to_exit_is_unscored():
    assert score(lambda prompt, text: sys.exit("no"), "a")[0] == [Unscored("SystemExit: no")]


def test_coroutines_are_awaited_side_by_side():
    async def reward(prompt, text):
        await asyncio.sleep(0.2)
        return len(text)

    started = time.monotonic()
    assert score(reward, *"abcdefgh" * 4)[0] == [Scored(1.0)] * 32
    assert time.monotonic() - started < 2.0


def test_a_coroutine_that_takes_too_long_is_unscored():
    async def reward(prompt, text):
        await asyncio.sleep(60 if text == "b" else 0)
        return 1.0

    [before, late, after], user = score(reward, "a", "b", "c", timeout_s=0.3)
    assert before == after == Scored(1.0)
    assert "took longer than 0.3 s" in late.reason and user.left_behind == 0


def test_a_poem_that_a_function_hangs_on_is_unscored_alone(hang):
    rewards, user = score(hang, "a", "h", "b", "c", "h", "h", timeout_s=0.2)
    assert [isinstance(reward, Scored) for reward in rewards] == [True, False, True, True, False, False]
    assert "took longer than 0.2 s (reward.timeout_s)" in rewards[1].reason
    assert user.left_behind == 3


def test_a_function_that_hangs_on_everything_ends_the_run(hang):
    with pytest.raises(RunFailed, match=r"reward\.timeout_s=0\.1 s.*for 3 poems in a row, and 3 of 4 in all"):
        score(hang, "a", *["h"] * HANGS_IN_A_ROW, "a", timeout_s=0.1)


def test_a_function_that_hangs_on_every_other_poem_ends_the_run(hang):
    with pytest.raises(RunFailed, match="for 1 poems in a row, and 8 of 16 in all"):
        score(hang, *["a", "h"] * 20, timeout_s=0.05)


def test_a_slow_function_is_not_a_hanging_one():
    def reward(prompt, text):
        time.sleep(0.05)
        return 1.0

    rewards, user = score(reward, *"abcdefghijklmnop", timeout_s=0.3)
    assert rewards == [Scored(1.0)] * 16 and user.left_behind == 0


def test_calls_take_turns_in_one_thread():
    threads = []

    def reward(prompt, text):
        threads.append(threading.get_ident())
        time.sleep(0.01)
        return float(text)

    async def both():
        user = UserReward(reward, 0.15)
        texts = [[(PROMPT, f"{10 * call + i}") for i in range(10)] for call in range(3)]
        return await asyncio.gather(*(user.score(poems) for poems in texts)), user.left_behind

    rewards, left_behind = asyncio.run(both())
    assert [[reward.total for reward in row] for row in rewards] == [[10 * c + i for i in range(10)] for c in range(3)]
    assert len(set(threads)) == 1 and threads[0] != threading.get_ident() and left_behind == 0
