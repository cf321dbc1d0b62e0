"""Asking a real server on 127.0.0.1 with a real client, whose clock is fast."""

import asyncio
import functools
from contextlib import asynccontextmanager

import pytest

from rlhaiku.judge import HaikuRubric, JudgeSettings, PoemToJudge
from rlhaiku.judge.client import JudgeClient
from tests.judge_server import FastClock, JudgeServer, points_of

KEY = "sk-planted-0123456789"
CRITERIA = ("relevance", "quality", "vocabulary")


def poems(count, topics=4):
    return [PoemToJudge(f"topic {i % topics}", f"poem number {i}\nby a pond") for i in range(count)]


def expected(poem):
    points = points_of(poem.text, CRITERIA)
    if min(points["relevance"], points["quality"]) < HaikuRubric.GOOD:
        points["vocabulary"] = 0
    return sum(points.values()) / 15


def assert_right(judgements, asked):
    assert [judged.score for judged in judgements] == [expected(poem) for poem in asked]


@asynccontextmanager
async def judging(server=None, rubric=None, clock=None, **settings):
    """A running server and a client for it; the client's clock is fast."""
    async with server or JudgeServer() as server:
        asked = JudgeSettings(server.url, **{"nonce_salt": "test", "api_key": KEY, "timeout_s": 5.0, **settings})
        async with JudgeClient(asked, rubric, clock=clock or FastClock()) as client:
            yield client, server


async def judge_all(client, poems):
    return await asyncio.wait_for(client.judge(poems), 20)


def sync(test):
    """Runs an async test; the loop's own complaints (lost exceptions, slow closing) are failures."""

    @functools.wraps(test)
    def run(**fixtures):
        complaints = []

        async def body():
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            await test(**fixtures)
            await asyncio.sleep(0.01)
            assert len(asyncio.all_tasks()) == 1, asyncio.all_tasks()

        asyncio.run(body())
        assert not complaints

    return run


def ways(*names):
    """Parametrizes an async test over ways to fail."""

    def decorate(test):
        @pytest.mark.parametrize("way", names)
        def run(way):
            sync(test)(way=way)

        run.__name__ = test.__name__
        return run

    return decorate
