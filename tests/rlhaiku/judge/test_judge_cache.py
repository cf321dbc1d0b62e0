"""What is kept on disk: the cache and the cassettes."""

import asyncio
import json
import subprocess
import sys

import pytest

from rlhaiku.errors import BadInput
from rlhaiku.judge import Judged, JudgeSettings, PoemToJudge, Unjudged
from rlhaiku.judge.cache import JudgeCache, cache_key
from rlhaiku.judge.cassette import RecordingTransport, ReplayTransport
from rlhaiku.judge.client import JudgeClient
from rlhaiku.judge.transport import HttpTransport
from tests.judge_server import FastClock, JudgeServer

POEMS = [PoemToJudge("frost", f"poem {i}") for i in range(6)]
KEY = "sk-planted-0123456789"
WRITER = """
import sys
from pathlib import Path
from rlhaiku.judge import Judged
from rlhaiku.judge.cache import JudgeCache
cache = JudgeCache(Path(sys.argv[1]))
for i in range(100):
    cache.put({f"{sys.argv[2]}-{i}": Judged(i / 100), "both": Judged(0.5)})
"""


@pytest.fixture
def cache(tmp_path):
    cache = JudgeCache(tmp_path / "deep" / "cache.sqlite")
    yield cache
    cache.close()


def test_it_keeps_scores_and_points(cache):
    judged = Judged(0.4, {"relevance": 4.0})
    cache.put({"a": judged, "b": Judged(0.1)})
    cache.put({"a": Judged(0.9)})
    cache.put({})
    assert cache.get(["a", "b", "c"]) == {"a": judged, "b": Judged(0.1)}


def test_several_processes_write_at_once(cache, tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "deep" / "cache.sqlite")]
    writers = [subprocess.Popen([*command, name]) for name in ("x", "y")]
    assert [writer.wait(30) for writer in writers] == [0, 0]
    assert len(cache.get([f"{name}-{i}" for name in "xy" for i in range(100)])) == 200


def test_the_key_holds_all_a_score_depends_on():
    poem = PoemToJudge("frost", "a poem", "old frog")
    keys = [
        cache_key(poem, "m", "r", 8),
        cache_key(poem, "n", "r", 8),
        cache_key(poem, "m", "s", 8),
        cache_key(poem, "m", "r", 1),
        cache_key(PoemToJudge("frost", "a poem"), "m", "r", 8),
        cache_key(PoemToJudge("rain", "a poem", "old frog"), "m", "r", 8),
        cache_key(PoemToJudge("frost", "\ud800", "old frog"), "m", "r", 8),
    ]
    assert len(set(keys)) == len(keys)


def test_a_file_that_is_no_cache_is_refused(tmp_path):
    path = tmp_path / "poems.txt"
    path.write_text("not a database, but long enough to look at" * 100)
    with pytest.raises(BadInput, match=r"poems\.txt"):
        JudgeCache(path)


def test_two_clients_share_the_cache_and_failures_are_not_in_it(tmp_path):
    async def body():
        async with JudgeServer(always="500") as server:
            settings = JudgeSettings(server.url, cache_path=tmp_path / "cache.sqlite", give_up_s=2.0)
            async with JudgeClient(settings, clock=FastClock()) as first, JudgeClient(settings) as second:
                assert all(isinstance(one, Unjudged) for one in await first.judge(POEMS))
                server.always = ""
                await asyncio.sleep(0.05)
                judged = await first.judge(POEMS)
                asked = len(server.bodies)
                assert await second.judge([*POEMS, POEMS[0]]) == [*judged, judged[0]]
                assert all(isinstance(one, Judged) for one in judged)
                assert len(server.bodies) == asked and second.stats().cache_hits == 7

    asyncio.run(body())


def test_a_cassette_replays_without_a_server(tmp_path):
    path = tmp_path / "judge.jsonl"

    async def record():
        async with JudgeServer(script=["500", "half"]) as server:
            settings = JudgeSettings(server.url, api_key=KEY, nonce_salt="tape")
            transport = RecordingTransport(HttpTransport(settings), path)
            async with JudgeClient(settings, transport=transport, clock=FastClock()) as client:
                return await client.judge(POEMS)

    async def replay(seed):
        settings = JudgeSettings("http://nowhere.invalid", nonce_salt=seed)
        async with JudgeClient(settings, transport=ReplayTransport(path), clock=FastClock()) as client:
            return await client.judge(POEMS), client.stats()

    recorded = asyncio.run(record())
    replayed, stats = asyncio.run(replay("tape"))
    assert replayed == recorded and stats.requests == 3
    text = path.read_text()
    assert [json.loads(line)["reply"]["status"] for line in text.splitlines()] == [500, 200, 200]
    assert KEY not in text and "127.0.0.1" not in text and "Authorization" not in text
    with pytest.raises(BadInput, match="cassette"):
        asyncio.run(replay("another"))
