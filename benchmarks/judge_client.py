"""The judge client against the tutorial's way of asking: a session, a connection and a request for every poem.

    python -m benchmarks.judge_client [--output FILE] [--force]

The judge is a real HTTP server in a process of its own that takes 50 ms and 10 ms more for each poem, all requests side
by side. So nobody is done before `waves x time of a request`: with few requests in flight that is what either client
waits for, with many it is the CPU. The least CPU that a request takes shows a bare client: one session, nothing else.
Over https, as a judge on Modal or elsewhere is reached, a new session means a new handshake as well; it needs openssl.
"""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

from benchmarks.judge_stand_in import LATENCY_S, PER_POEM_S
from benchmarks.measure import Paired, begin, paired, parser, timed
from launch.pretrain.verse import Verse
from rlhaiku.judge import JudgeClient, Judged, JudgeSettings, PoemToJudge

TOPICS = 64
GOAL = 2.0
CASES = (("http", 32, 1, 512), ("https", 32, 1, 512), ("http", 512, 1, 4096), ("http", 32, 8, 512))
"""Requests in flight, poems in a request, poems."""
PAIRS = 5


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
    import aiohttp  # reads SSL_CERT_FILE

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
    import aiohttp

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


def compare(url: str, concurrency: int, batch: int, num_poems: int) -> Paired:
    """Both clients with as many requests in flight."""
    stock = [make_poems(num_poems, seed) for seed in range(2 * (PAIRS + 1) + 2)]
    waves = -(-num_poems // (batch * concurrency))
    request_s = LATENCY_S + batch * PER_POEM_S
    name = f"judge, {url.partition(':')[0]}: {batch} a request, {concurrency} in flight, tutorial / ours"
    _, bare_cpu_s = min(timed(lambda: asyncio.run(ask_barely(url, stock.pop(), concurrency))) for _ in range(2))
    bound = f"nobody can take less than {waves * request_s:.2f} s: {waves} waves of {request_s:.2f} s"
    note = f"{bound}; bare, one poem a request: CPU {1000 * bare_cpu_s / num_poems:.2f} ms a poem"
    result = paired(
        name,
        lambda: asyncio.run(ask_like_the_tutorial(url, stock.pop(), concurrency)),
        lambda: asyncio.run(ask_with_our_client(url, stock.pop(), concurrency, batch)),
        pairs=PAIRS,
        goal=GOAL,
        note=note,
    )
    cpus = [1000 * sorted(side)[PAIRS // 2] / num_poems for side in (result.baseline_cpu_s, result.ours_cpu_s)]
    above = sorted(result.ours_s)[PAIRS // 2] / (waves * request_s)
    print(f"  CPU {cpus[0]:.2f} -> {cpus[1]:.2f} ms a poem; {note}; ours takes {above:.2f} times as long")
    return result


def make_certificate(directory: Path) -> list[str]:
    """A certificate for 127.0.0.1 that this process trusts from now on, and its key."""
    pair = [str(directory / "certificate.pem"), str(directory / "key.pem")]
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=judge -addext subjectAltName=IP:127.0.0.1"
    arguments = [*command.split(), "-out", pair[0], "-keyout", pair[1]]
    subprocess.run(arguments, check=True, capture_output=True, timeout=60)
    os.environ["SSL_CERT_FILE"] = pair[0]
    return pair


@contextmanager
def stand_in(pair: Sequence[str] = ()) -> Iterator[str]:
    """The URL of a judge in a process of its own, over TLS with a certificate and its key."""
    command = [sys.executable, "-m", "benchmarks.judge_stand_in", *pair]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def main() -> None:
    """Measures everything and prints a line each."""
    options = parser(__doc__).parse_args()
    results = begin(options)
    with tempfile.TemporaryDirectory() as directory:
        pair = make_certificate(Path(directory))
        with stand_in() as plain, stand_in(pair) as tls:
            urls = {"http": plain, "https": tls}
            for scheme, *case in CASES[:1] if options.smoke else CASES:
                results.add_paired(compare(urls[scheme], *case))


if __name__ == "__main__":
    main()
