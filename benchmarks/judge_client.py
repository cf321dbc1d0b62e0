"""The judge client against the tutorial's way of asking: a session, a connection and a request for every poem.

    python -m benchmarks.judge_client [--output FILE] [--force]

The judge is a real HTTP server in a process of its own that takes 50 ms and 10 ms more for each poem, all requests side
by side. So nobody is done before `waves x time of a request`: with few requests in flight that is what either client
waits for, with many it is the CPU. The least CPU that a request takes shows a bare client: one session, nothing else.
"""

import argparse
import asyncio
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from random import Random

import aiohttp

from benchmarks.judge_stand_in import LATENCY_S, PER_POEM_S
from benchmarks.measure import Paired, paired, refuse_when_busy, timed, write_results
from launch.pretrain.verse import Verse
from rlhaiku.judge import JudgeClient, Judged, JudgeSettings, PoemToJudge

TOPICS = 64
GOAL = 2.0
CASES = ((32, 1, 512, 5), (512, 1, 4096, 5), (32, 8, 512, 5))
"""Requests in flight, poems in a request, poems, and pairs of measurements."""


def make_poems(num_poems: int, seed: int) -> list[PoemToJudge]:
    """Poems that no other seed has, as many for each topic."""
    verse, rng = Verse(), Random(seed)
    topics = rng.sample(sorted(verse.topics), TOPICS)
    each = range(num_poems // TOPICS)
    return [PoemToJudge(topic, verse.poem(rng, topic, (5, 7, 5)).text) for topic in topics for _ in each]


def tutorial_body(poem: PoemToJudge) -> dict[str, object]:
    """A request as the tutorial makes it."""
    prompt = f"You are evaluating a haiku poem.\n\nTopic: {poem.topic}\nResponse:\n{poem.text}\n\nScore 0-10."
    return {"model": "qwen3-4b", "max_tokens": 100, "messages": [{"role": "user", "content": prompt}]}


async def ask_like_the_tutorial(url: str, poems: Sequence[PoemToJudge], concurrency: int) -> list[float]:
    """A new session for each poem, the first number of the answer, and 0 when anything goes wrong."""
    slots = asyncio.Semaphore(concurrency)

    async def ask(poem: PoemToJudge) -> float:
        async with slots, aiohttp.ClientSession() as session:
            try:
                async with session.post(f"{url}/v1/chat/completions", json=tutorial_body(poem)) as response:
                    answer = (await response.json())["choices"][0]["message"]["content"]
            except aiohttp.ClientError:
                return 0.0
        found = re.search(r"\d+(?:\.\d+)?", answer)
        return min(10.0, float(found[0])) / 10 if found else 0.0

    return await asyncio.gather(*(ask(poem) for poem in poems))


async def ask_barely(url: str, poems: Sequence[PoemToJudge], concurrency: int) -> None:
    """The tutorial's requests over one session, and not even the answers are read: what is left is aiohttp."""
    slots = asyncio.Semaphore(concurrency)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)) as session:

        async def ask(poem: PoemToJudge) -> None:
            async with slots, session.post(f"{url}/v1/chat/completions", json=tutorial_body(poem)) as response:
                await response.read()

        await asyncio.gather(*(ask(poem) for poem in poems))


async def ask_with_our_client(url: str, poems: Sequence[PoemToJudge], concurrency: int, batch: int) -> None:
    """One pooled session; every poem must come back judged."""
    settings = JudgeSettings(url=url, max_concurrency=concurrency, poems_per_request=batch)
    async with JudgeClient(settings) as judge:
        assert all(isinstance(judgement, Judged) for judgement in await judge.judge(poems))


def compare(url: str, concurrency: int, batch: int, num_poems: int, pairs: int) -> Paired:
    """Both clients with as many requests in flight."""
    seeds = count()
    stock = [make_poems(num_poems, next(seeds)) for _ in range(2 * (pairs + 1) + 2)]
    waves = -(-num_poems // (batch * concurrency))
    request_s = LATENCY_S + batch * PER_POEM_S
    name = f"judge: {batch} a request, {concurrency} in flight, tutorial / ours"
    _, bare_cpu_s = min(timed(lambda: asyncio.run(ask_barely(url, stock.pop(), concurrency))) for _ in range(2))
    bound = f"nobody can take less than {waves * request_s:.2f} s: {waves} waves of {request_s:.2f} s"
    note = f"{bound}; bare, one poem a request: CPU {1000 * bare_cpu_s / num_poems:.2f} ms a poem"
    result = paired(
        name,
        lambda: asyncio.run(ask_like_the_tutorial(url, stock.pop(), concurrency)),
        lambda: asyncio.run(ask_with_our_client(url, stock.pop(), concurrency, batch)),
        pairs=pairs,
        goal=GOAL,
        note=note,
    )
    cpus = [1000 * sorted(side)[pairs // 2] / num_poems for side in (result.baseline_cpu_s, result.ours_cpu_s)]
    above = sorted(result.ours_s)[pairs // 2] / (waves * request_s)
    print(f"  CPU {cpus[0]:.2f} -> {cpus[1]:.2f} ms a poem; {note}; ours takes {above:.2f} times as long")
    return result


def main() -> None:
    """Measures everything and prints a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/latest.jsonl"))
    parser.add_argument("--force", action="store_true", help="measure on a busy machine all the same")
    options = parser.parse_args()
    load = refuse_when_busy(options.force)
    command = [sys.executable, "-m", "benchmarks.judge_stand_in"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        results = [compare(url, *case) for case in CASES]
    finally:
        server.terminate()
        server.wait()
    write_results(options.output, results, load)


if __name__ == "__main__":
    main()
