"""The scores of both orders, side by side."""

import asyncio

from benchmarks.judge_order import both_orders, make_poems
from rlhaiku.judge import JudgeClient, JudgeSettings
from tests.judge_server import JudgeServer


def pairs_of(place_bias):
    async def go():
        async with JudgeServer(place_bias=place_bias) as server:
            async with JudgeClient(JudgeSettings(server.url)) as judge:
                pairs = await both_orders(judge, make_poems(1, 4)[0])
            assert len(server.bodies) == 2
            return [(forward.score, backward.score) for forward, backward in pairs]

    return asyncio.run(go())


def test_a_judge_that_looks_at_poems_alone_gives_the_same_in_both_orders():
    pairs = pairs_of(0)
    assert all(forward == backward for forward, backward in pairs)
    assert len({forward for forward, _ in pairs}) > 1


def test_a_judge_that_minds_the_place_is_found_out():
    first, *middle, last = pairs_of(2)
    assert first[0] > first[1] and last[0] < last[1]
    assert all(forward == backward for forward, backward in middle)
