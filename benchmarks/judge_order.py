"""Whether a judge minds the order of the poems in a request: the same poems in both orders, scores side by side.

    python -m benchmarks.judge_order [--topics N] [--poems N] [--place-bias POINTS]

The judge is that of LLM_JUDGE_URL, or else a stand-in on 127.0.0.1 that gives the first poem of a request some points
more.
"""

import argparse
import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from random import Random

from launch.pretrain.verse import Verse
from rlhaiku.judge import JudgeClient, Judged, Judgement, JudgeSettings, PoemToJudge, from_environment
from tests.judge_server import JudgeServer

MIDDLE_LINES = (7, 5, 9, 7)
"""Syllables: not every poem is a haiku."""


def make_poems(num_topics: int, per_topic: int, seed: int = 0) -> list[list[PoemToJudge]]:
    """Poems by topic."""
    verse, rng = Verse(), Random(seed)
    forms = [(5, MIDDLE_LINES[i % len(MIDDLE_LINES)], 5) for i in range(per_topic)]
    topics = rng.sample(sorted(verse.topics), num_topics)
    return [[PoemToJudge(topic, verse.poem(rng, topic, form).text) for form in forms] for topic in topics]


async def both_orders(judge: JudgeClient, poems: Sequence[PoemToJudge]) -> list[tuple[Judgement, Judgement]]:
    """The judgements of each of `poems`, of one topic, as first asked and in reversed order; one request each."""
    forward = await judge.judge(poems)
    backward = await judge.judge(list(reversed(poems)))
    return list(zip(forward, reversed(backward), strict=True))


async def compare(options: argparse.Namespace) -> None:
    """Asks and prints."""
    async with AsyncExitStack() as stack:
        settings = from_environment(poems_per_request=options.poems)
        if settings is None:
            server = await stack.enter_async_context(JudgeServer(place_bias=options.place_bias))
            settings = JudgeSettings(server.url, poems_per_request=options.poems)
            print(f"no LLM_JUDGE_URL: a stand-in that gives the first poem {options.place_bias} points more")
        judge = await stack.enter_async_context(JudgeClient(settings))
        print(f"{'first line':<40} place  score  reversed  difference")
        moved = []
        for poems in make_poems(options.topics, options.poems):
            for place, (poem, pair) in enumerate(zip(poems, await both_orders(judge, poems), strict=True), 1):
                moved += _show(poem, place, pair)
    changes = [change for change in moved if change]
    mean = sum(map(abs, moved)) / len(moved) if moved else 0.0
    print(f"{len(changes)} of {len(moved)} scores moved; by {mean:.3f} on average over all of them")


def _show(poem: PoemToJudge, place: int, pair: tuple[Judgement, Judgement]) -> list[float]:
    """Prints a line; the difference, if both orders were judged."""
    title = f"{poem.topic}: {poem.text.splitlines()[0]}"[:40]
    forward, backward = pair
    if not (isinstance(forward, Judged) and isinstance(backward, Judged)):
        print(f"{title:<40} {place:>5}  {forward if not isinstance(forward, Judged) else backward}")
        return []
    change = backward.score - forward.score
    print(f"{title:<40} {place:>5}  {forward.score:5.3f}  {backward.score:8.3f}  {change:+10.3f}")
    return [change]


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topics", type=int, default=6)
    parser.add_argument("--poems", type=int, default=4, help="of each topic, in one request")
    parser.add_argument("--place-bias", type=int, default=2, help="of the stand-in: points of 5 for each criterion")
    asyncio.run(compare(parser.parse_args()))


if __name__ == "__main__":
    main()
