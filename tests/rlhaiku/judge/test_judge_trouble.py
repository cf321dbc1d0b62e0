"""What servers and users' rubrics do that is neither an answer nor an outage."""

import asyncio

import numpy as np
import pytest
from aiohttp import web

from rlhaiku.judge import HaikuRubric, Judged, JudgeRefused, PoemToJudge, Unjudged
from tests.judge_server import JudgeServer
from tests.judging import KEY, assert_right, judge_all, judging, poems, sync, ways


@ways("few", "raising", "asking", "strange")
async def test_a_rubric_that_fails_judges_nothing_and_holds_nobody_up(way):
    class Broken(HaikuRubric):
        def ask(self, poems, nonces):
            if way == "asking":
                raise KeyError("topic")
            return super().ask(poems, nonces)

        def read(self, answer, poems, nonces):
            if way == "raising":
                raise ZeroDivisionError("division by zero")
            return [Judged("fine")] * len(poems) if way == "strange" else [Judged(0.5)] * (len(poems) - 1)

    async with judging(rubric=Broken()) as (client, _):
        judgements = await judge_all(client, poems(8))
        assert all(isinstance(one, Unjudged) and "the rubric failed: " in one.reason for one in judgements)
        assert client.stats().validity == 0


@sync
async def test_scores_of_a_users_rubric_are_checked_and_kept_as_plain_floats(tmp_path):
    given = {"0": 7.0, "1": float("nan"), "2": -0.1, "3": np.float32(0.25)}

    class Own(HaikuRubric):
        def read(self, answer, poems, nonces):
            return [Judged(given[poem.text], {"points": np.int64(3)}) for poem in poems]

    asked = [PoemToJudge("frost", text) for text in given]
    async with judging(rubric=Own(), cache_path=tmp_path / "cache.sqlite") as (client, _):
        *wrong, right = await judge_all(client, asked)
        assert all(isinstance(one, Unjudged) and "in 0 to 1" in one.reason for one in wrong)
        assert right == Judged(0.25, {"points": 3.0}) and type(right.score) is float
        assert await judge_all(client, asked[3:]) == [right] and client.stats().cache_hits == 1


@sync
async def test_a_cache_that_breaks_in_an_unforeseen_way_hangs_nobody(tmp_path):
    async with judging(cache_path=tmp_path / "cache.sqlite") as (client, _):
        client._cache.put = lambda judgements: {}["unforeseen"]
        with pytest.raises(KeyError, match="unforeseen"):
            await judge_all(client, poems(4))
        assert not client._in_flight


@sync
async def test_poems_asked_about_alone_are_cached_as_such(tmp_path):
    asked = poems(8, topics=1)
    cache = {"cache_path": tmp_path / "cache.sqlite"}
    async with judging(JudgeServer(script=["half"]), **cache) as (client, server):
        assert_right(await judge_all(client, asked), asked)
        assert len(server.bodies) == 2, "the one that was left out was asked about alone"
    async with judging(**cache) as (client, server):
        assert_right(await judge_all(client, asked), asked)
        assert server.poems_asked() == [asked[0].text]
    async with judging(poems_per_request=1, **cache) as (client, server):
        await judge_all(client, asked)
        assert server.poems_asked() == [poem.text for poem in asked[1:]]


@ways("400", "413", "422")
async def test_a_rejected_poem_is_unjudged_alone(way):
    asked = poems(16, topics=2)

    class Picky(JudgeServer):
        def _way(self):
            return way if "number 3" in self.bodies[-1]["messages"][1]["content"] else ""

    async with judging(Picky()) as (client, _):
        judgements = await judge_all(client, asked)
        assert isinstance(judgements[3], Unjudged) and f"status {way}" in judgements[3].reason
        assert_right(judgements[:3] + judgements[4:], asked[:3] + asked[4:])
        assert_right(await judge_all(client, poems(4)[:2]), poems(4)[:2])
        assert client.stats().retries == 0


@sync
async def test_a_server_that_rejects_everything_refuses():
    async with judging(JudgeServer(always="400")) as (client, server):
        with pytest.raises(JudgeRefused, match="status 400"):
            await judge_all(client, poems(40, topics=10))
        assert server.served["400"] < 30


@sync
async def test_keys_that_a_server_objects_to_are_left_out_from_then_on():
    asked = poems(24, topics=6)
    server = JudgeServer(objects_to=("chat_template_kwargs", "seed"))
    async with judging(server, max_concurrency=1) as (client, server):
        assert_right(await judge_all(client, asked), asked)
        assert len(server.bodies) == 8, "two more for the first request"
        assert not {"seed", "chat_template_kwargs"} & set(server.bodies[-1])
        assert client.stats().retries == 0 and client.stats().outages == 0


@sync
async def test_a_rejection_that_quotes_the_request_costs_no_key():
    class Quoting(JudgeServer):
        def _refuse(self, way, request):
            return web.Response(status=422, text=str(self.bodies[-1]))

    async with judging(Quoting(script=["422", "422"]), max_concurrency=1) as (client, server):
        asked = poems(2)
        assert_right(await judge_all(client, asked), asked)
        assert "chat_template_kwargs" in server.bodies[-1]


@sync
async def test_an_answer_that_takes_long_is_fetched_where_303_says():
    asked = poems(8)
    async with judging(JudgeServer(always="303")) as (client, server):
        assert_right(await judge_all(client, asked), asked)
        assert len(server.headers) == 4 * 4 and all(h["Authorization"] == f"Bearer {KEY}" for h in server.headers)


@sync
async def test_a_303_to_another_server_is_not_followed():
    async with (
        JudgeServer() as other,
        judging(JudgeServer(always="303", elsewhere=f"{other.url}/v1/answers")) as (client, _),
    ):
        with pytest.raises(JudgeRefused, match="status 303"):
            await judge_all(client, poems(1))
        assert not other.headers


@sync
async def test_endless_redirects_end():
    class Endless(JudgeServer):
        async def _answer_later(self, request):
            self.served["hop"] += 1
            return web.Response(status=303, headers={"Location": str(request.url)})

    async with judging(Endless(always="303")) as (client, server):
        with pytest.raises(JudgeRefused, match="status 303"):
            await judge_all(client, poems(1))
        assert server.served["hop"] == 50


@ways("429", "503")
async def test_a_server_that_asks_for_an_hour_is_given_up_on_after_give_up_s(way):
    server = JudgeServer(always=way, retry_after="3600")
    async with judging(server, give_up_s=40.0, max_concurrency=2, poems_per_request=1) as (client, server):
        started = asyncio.get_running_loop().time()
        waiting = asyncio.ensure_future(judge_all(client, poems(50)))
        await asyncio.sleep(0.1)
        assert client.is_waiting and not waiting.done()
        assert all(isinstance(one, Unjudged) and "throttled for" in one.reason for one in await waiting)
        assert asyncio.get_running_loop().time() - started < 1.5, "all of them together, not two after two"
        assert server.served[way] <= 6 and not client.stats().outages
        server.always = ""
        await asyncio.sleep(0.5)  # the last of them prolonged the pause by another 40 s
        asked = poems(8)
        assert_right(await judge_all(client, asked), asked)
        assert not client.is_waiting


@sync
async def test_nonsense_in_usage_is_not_counted():
    for usage in ({"prompt_tokens": 10**400, "completion_tokens": -7}, {"prompt_tokens": 0, "completion_tokens": "9"}):
        async with judging(JudgeServer(usage=usage)) as (client, _):
            asked = poems(1)
            assert_right(await judge_all(client, asked), asked)
            assert (client.stats().prompt_tokens, client.stats().completion_tokens) == (0, 0)


@sync
async def test_what_it_costs():
    server = JudgeServer(usage={"prompt_tokens": 2000, "completion_tokens": 100})
    async with judging(server, usd_per_million=(0.5, 2.0)) as (client, _):
        await judge_all(client, poems(8, topics=2))
        assert client.stats().cost_usd == pytest.approx(2 * (2000 * 0.5 + 100 * 2.0) / 1e6)
