"""The table: honest, near-miss and adversarial texts, each with what it earns in both modes."""

import tomllib
from collections import Counter
from pathlib import Path

import pytest

from rlhaiku.haiku.reward import HaikuReward
from rlhaiku.types import Prompt

POEMS = tomllib.loads((Path(__file__).parent / "poems.toml").read_text(encoding="utf-8"))["poem"]


def score(poem, mode):
    prompt = Prompt("table", poem.get("topic", ""), poem.get("prompt", ""), (), poem.get("reference", ""))
    return HaikuReward(mode=mode).score_text(prompt, poem["text"])


@pytest.mark.parametrize("poem", POEMS, ids=lambda poem: poem["name"])
def test_every_text_earns_what_the_table_says(poem):
    assert score(poem, "default").earned == pytest.approx(poem["default"], abs=1e-4)
    assert score(poem, "seed").earned == poem["seed"]


@pytest.mark.parametrize("poem", [p for p in POEMS if p["kind"] == "honest"], ids=lambda poem: poem["name"])
def test_honest_poems_earn_everything(poem):
    assert score(poem, "default").components()["strict"] == 1.0


def test_near_misses_lose_points_and_adversaries_lose_to_them():
    for poem in POEMS:
        if poem["kind"] == "near-miss":
            assert poem["default"] < 1.0, poem["name"]
            assert score(poem, "default").legitimacy == 1.0, poem["name"]
        if poem["kind"] == "adversarial":
            assert poem["default"] <= 0.75, poem["name"]


def test_the_table_is_large_and_names_the_tutorials_failures():
    assert len(POEMS) >= 60
    assert len({poem["name"] for poem in POEMS}) == len(POEMS)
    kinds = Counter(poem["kind"] for poem in POEMS)
    assert min(kinds[kind] for kind in ("honest", "near-miss", "adversarial")) >= 15
    assert {poem["bug"] for poem in POEMS if "bug" in poem} == {"B1", "B8", "B9", "B10", "B11", "B12", "B13", "B14"}


def test_each_failure_shows_in_the_tutorials_score():
    """For every bug there is a text that the two modes disagree about by a line or more."""
    worst = Counter()
    for poem in POEMS:
        worst[poem.get("bug")] = max(worst[poem.get("bug")], abs(poem["default"] - poem["seed"]))
    assert all(gap >= 0.125 for bug, gap in worst.items() if bug)
