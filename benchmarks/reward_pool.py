"""Scoring poems: the pool of reward workers against calling a scorer in the loop, and what loading the table costs.

    python -m benchmarks.reward_pool [--output FILE] [--force]
"""

import re
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import ray

from actors.crew import Crew
from actors.reward_pool import RewardPool
from actors.reward_worker import INLINE_BELOW, RewardSpec, RewardWorker
from actors.waiting import RayEvents
from benchmarks.measure import Paired, begin, paired, parser
from launch.pretrain.verse import Verse
from launch.ray_runtime import local_ray
from rlhaiku.haiku.dictionary import load_dictionary
from rlhaiku.haiku.reward import HaikuReward
from rlhaiku.types import Completion, Group, GroupKey, Prompt

GROUP = 8
SIZES = (8, 64, 256, 1024, 4096)
WORKERS = 2


def make_groups(num_poems: int, seed: int) -> list[Group]:
    """Groups of poems that no other seed has: a cache of poems would help nobody."""
    verse, rng = Verse(), Random(seed)
    topics = sorted(verse.topics)
    groups = []
    for claim in range(-(-num_poems // GROUP)):
        prompt = Prompt(f"bench/{seed}/{claim}", rng.choice(topics), "Write me a haiku.", (1,))
        texts = [verse.poem(rng, prompt.topic, (5, rng.randint(6, 8), 5)).text for _ in range(GROUP)]
        completions = tuple(Completion(array("i", [1]), array("d", [0.0]), text, "stop", 0) for text in texts)
        groups.append(Group(GroupKey(claim, 0, prompt.prompt_id), prompt, completions))
    last = GROUP * len(groups) - num_poems
    return [*groups[:-1], replace(groups[-1], completions=groups[-1].completions[: GROUP - last])]


def tutorial_structure(text: str, pronounced: dict[str, list[list[str]]]) -> float:
    """The tutorial's scorer, from its description: one regular expression, one dictionary, one rule for the rest."""
    separator = "/" if "/" in text else ". " if ". " in text else "\n"
    segments = text.split(separator)
    segments = [segment.strip() for segment in segments if segment.strip()]
    score = 0.25 if len(segments) == 3 else 0.0
    for segment, target in zip(segments, (5, 7, 5), strict=False):
        off = abs(sum(_tutorial_word(word, pronounced) for word in re.findall(r"[a-zA-Z]+", segment)) - target)
        score += 0.25 if off == 0 else 0.125 if off == 1 else 0.0
    return score


def _tutorial_word(word: str, pronounced: dict[str, list[list[str]]]) -> int:
    low = word.lower()
    if low in pronounced:
        return sum(1 for phone in pronounced[low][0] if phone[-1].isdigit())
    if word.isupper() and 2 <= len(word) <= 6:
        return sum(3 if letter == "W" else 1 for letter in word)
    count = len(re.findall(r"[aeiouy]+", low))
    return max(1, count - (low.endswith("e") and count > 1))


class Fresh:
    """Hands out groups never seen before, made outside the clock."""

    def __init__(self, num_poems: int, runs: int) -> None:
        self._stock = [make_groups(num_poems, seed) for seed in range(runs)]

    def __call__(self) -> list[Group]:
        return self._stock.pop()


def through_pool(pool: RewardPool, events: RayEvents, take: Callable[[], Sequence[Group]]) -> Callable[[], None]:
    """One submission and the wait for all of it."""

    def work() -> None:
        groups = take()
        pool.submit(groups)
        done = 0
        while done < len(groups):
            done += len(events.next("scores").groups)  # type: ignore[union-attr]

    return work


def measure_pool(mode: str, sizes: Sequence[int], goal: dict[int, float], pairs: int = 7) -> Iterator[Paired]:
    """The pool against an inline loop, per batch size; in seed mode the loop is the tutorial's scorer."""
    reward = HaikuReward(mode=mode)  # type: ignore[arg-type]
    spec = RewardSpec(((reward, 1.0),))
    table = load_dictionary("bundled")
    # Phones as nltk has them: the tutorial counts those with a stress mark at every look-up.
    pronounced = {word: [["K", "AH0"] * count for count in readings] for word, readings in table.table.items()}
    events = RayEvents(60.0)
    crew = Crew("reward worker", lambda place: ray.remote(num_cpus=1)(RewardWorker).remote(spec), WORKERS)
    pool = RewardPool(crew, events, inline=RewardWorker(spec))
    warm = Fresh(2 * INLINE_BELOW, 4)
    for _ in range(4):  # every process has seen the common words before the clock starts, as it has in a run
        through_pool(pool, events, warm)()
    for size in sizes:
        baseline_stock, our_stock = Fresh(size, pairs + 1), Fresh(size, pairs + 1)

        def inline(take: Fresh = baseline_stock) -> None:
            for group in take():
                for completion in group.completions:
                    if mode == "seed":
                        tutorial_structure(completion.text, pronounced)
                    else:
                        reward(group.prompt, completion.text)

        name = f"{mode}: {size} poems, pool / {'tutorial' if mode == 'seed' else 'same scorer'} inline"
        work = through_pool(pool, events, our_stock)
        yield paired(name, inline, work, pairs=pairs, goal=goal.get(size), note=f"{WORKERS} workers")
    for worker in crew.actors:
        ray.kill(worker.handle)


OUR_LOAD = "from rlhaiku.haiku.dictionary import load_dictionary; import time; t=time.perf_counter(); " \
    "load_dictionary('bundled').readings('fire'); print(time.perf_counter()-t)"
NLTK_LOAD = "import sys, time; t=time.perf_counter(); import nltk; nltk.data.path.insert(0, sys.argv[1]); " \
    "from nltk.corpus import cmudict; d=cmudict.dict(); print(time.perf_counter()-t)"


def measure_load() -> Paired:
    """The bundled table against nltk's, each in a new process; the process start itself is not counted."""
    with tempfile.TemporaryDirectory() as directory:
        corpus = Path(directory) / "corpora" / "cmudict"
        corpus.mkdir(parents=True)
        table = load_dictionary("bundled")
        lines = [
            f"{word.upper()} {i} {' '.join(['AH0'] * count)}"
            for word, readings in table.table.items()
            for i, count in enumerate(readings, start=1)
        ]
        (corpus / "cmudict").write_text("\n".join(lines) + "\n")

        def loading(code: str) -> list[float]:
            command = [sys.executable, "-c", code, directory]
            return [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(7)]

        ours, nltk = loading(OUR_LOAD), loading(NLTK_LOAD)
    ratios = sorted(b / a for a, b in zip(ours, nltk, strict=True))
    result = Paired(
        "load the syllable table, nltk / bundled", ratios[3], ratios[0], ratios[-1], nltk, ours, [], [], 15.0,
        "nltk's own import counted; interval is the range",
    )
    print(f"{result.name:<58} {result.ratio:6.2f}x  {1000 * sorted(nltk)[3]:.0f} -> {1000 * sorted(ours)[3]:.0f} ms")
    return result


def main() -> None:
    """Measures everything and prints a line each."""
    options = parser(__doc__).parse_args()
    results = begin(options)
    pairs = 1 if options.smoke else 7
    results.add_paired(measure_load())
    with local_ray(WORKERS):
        for result in measure_pool("seed", (1024,), {1024: 3.0}, pairs):
            results.add_paired(result)
        for result in measure_pool("default", SIZES[:2] if options.smoke else SIZES, {1024: 1.0, 4096: 1.0}, pairs):
            results.add_paired(result)


if __name__ == "__main__":
    main()
