"""The judge client against the tutorial's way of asking: a session, a connection and a request for every poem.

    python -m benchmarks.judge_client [--output FILE] [--force]

The judge is a real HTTP server in a process of its own that takes 50 ms and 10 ms more for each poem.
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

from benchmarks.measure import Paired, paired, refuse_when_busy, write_results
from launch.pretrain.verse import Verse
from rlhaiku.judge import JudgeClient, Judged, JudgeSettings, PoemToJudge

LATENCY_S, PER_POEM_S = 0.05, 0.01
POEMS = 512
PER_TOPIC = 8


def make_poems(seed: int) -> list[PoemToJudge]:
    """Poems that no other seed has, eight to a topic as in a group."""
    verse, rng = Verse(), Random(seed)
    topics = rng.sample(sorted(verse.topics), POEMS // PER_TOPIC)
    return [PoemToJudge(topic, verse.poem(rng, topic, (5, 7, 5)).text) for topic in topics for _ in range(PER_TOPIC)]


async def ask_like_the_tutorial(url: str, poems: Sequence[PoemToJudge], concurrency: int) -> list[float]:
    """A new session for each poem, the first number of the answer, and 0 when anything goes wrong."""
    slots = asyncio.Semaphore(concurrency)

    async def ask(poem: PoemToJudge) -> float:
        body = {"model": "qwen3-4b", "max_tokens": 100, "messages": [{"role": "user", "content": f"Rate: {poem.text}"}]}
        async with slots, aiohttp.ClientSession() as session:
            try:
                async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                    answer = (await response.json())["choices"][0]["message"]["content"]
            except aiohttp.ClientError:
                return 0.0
        found = re.search(r"\d+(?:\.\d+)?", answer)
        return min(10.0, float(found[0])) / 10 if found else 0.0

    return await asyncio.gather(*(ask(poem) for poem in poems))


async def ask_with_our_client(url: str, poems: Sequence[PoemToJudge], concurrency: int, batch: int) -> None:
    """One pooled session; every poem must come back judged."""
    settings = JudgeSettings(url=url, max_concurrency=concurrency, poems_per_request=batch)
    async with JudgeClient(settings) as judge:
        assert all(isinstance(judgement, Judged) for judgement in await judge.judge(poems))


def compare(url: str, concurrency: int, batch: int, goal: float, pairs: int) -> Paired:
    """Both clients with as many requests in flight."""
    seeds = count()
    stock = [make_poems(next(seeds)) for _ in range(2 * (pairs + 1))]
    requests = POEMS // batch
    waves = -(-requests // concurrency)
    bound_s = waves * (LATENCY_S + batch * PER_POEM_S)
    name = f"judge: {batch} a request, {concurrency} in flight, tutorial / ours"
    note = f"ours cannot take less than {bound_s:.2f} s: {waves} waves of {LATENCY_S + batch * PER_POEM_S:.2f} s"
    return paired(
        name,
        lambda: asyncio.run(ask_like_the_tutorial(url, stock.pop(), concurrency)),
        lambda: asyncio.run(ask_with_our_client(url, stock.pop(), concurrency, batch)),
        pairs=pairs,
        goal=goal,
        note=note,
    )


def main() -> None:
    """Measures everything and prints a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/latest.jsonl"))
    parser.add_argument("--force", action="store_true", help="measure on a busy machine all the same")
    options = parser.parse_args()
    load = refuse_when_busy(options.force)
    command = [sys.executable, "-m", "tests.judge_server", "0", str(LATENCY_S), str(PER_POEM_S)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        results = [compare(url, 32, 1, 2.0, 5), compare(url, 64, 1, 2.0, 5), compare(url, 32, 8, 2.0, 5)]
        for result in results:
            cpu = [1000 * sorted(side)[2] / POEMS for side in (result.baseline_cpu_s, result.ours_cpu_s)]
            print(f"  {result.name}: CPU {cpu[0]:.2f} -> {cpu[1]:.2f} ms a poem; {result.note}")
    finally:
        server.terminate()
        server.wait()
    write_results(options.output, results, load)


if __name__ == "__main__":
    main()
