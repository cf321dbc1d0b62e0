"""Lines have the length they are asked for, and poems name their topic."""

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.pretrain.grammar import MAX_SLOTS, line_shapes
from launch.pretrain.verse import MAX_SYLLABLES, Verse, _length_choices
from rlhaiku.haiku.syllables import count_line

VERSE = Verse()
TOPICS = sorted(VERSE.topics)
THEMES = sorted(set(VERSE.topics.values()))


@pytest.mark.parametrize("syllables", range(1, MAX_SYLLABLES + 1))
@pytest.mark.parametrize("theme", THEMES)
def test_a_line_has_the_syllables_asked_for(theme: str, syllables: int) -> None:
    rng = Random(f"{theme} {syllables}")
    lines = [VERSE.line(rng, syllables, theme) for _ in range(5)]
    assert [count_line(line.text) for line in lines] == [syllables] * 5
    assert [line.syllables for line in lines] == [syllables] * 5


@settings(max_examples=100, deadline=None)
@given(st.integers(), st.sampled_from(TOPICS), st.lists(st.integers(1, MAX_SYLLABLES), min_size=1, max_size=6))
def test_a_poem_keeps_its_meter(seed: int, topic: str, meter: list[int]) -> None:
    poem = VERSE.poem(Random(seed), topic, meter)
    assert list(poem.meter) == meter
    assert [count_line(line) for line in poem.text.split("\n")] == meter


def test_poems_depend_on_the_generator_alone() -> None:
    first = [VERSE.poem(Random(seed), "otter", (5, 7, 5)) for seed in range(20)]
    again = [Verse().poem(Random(seed), "otter", (5, 7, 5)) for seed in range(20)]
    assert first == again
    assert len({poem.text for poem in first}) == 20


def test_every_topic_can_be_named() -> None:
    def named(topic: str) -> bool:
        return any(topic in VERSE.poem(Random(seed), topic, (5, 7, 5)).text for seed in range(5))

    assert [topic for topic in TOPICS if not named(topic)] == []


def test_an_article_fits_the_next_word() -> None:
    rng = Random(3)
    words = [VERSE.poem(rng, topic, (7, 7, 7)).text.split() for topic in TOPICS for _ in range(4)]
    pairs = [(here, after) for poem in words for here, after in pairwise(poem)]
    assert any(here == "an" for here, _ in pairs)
    sounds_like_a_consonant = ("one", "eu")
    wrong = [b for a, b in pairs if a == "a" and b[0] in "aeio" and not b.startswith(sounds_like_a_consonant)]
    assert wrong == []


def test_length_choices_count_the_ways() -> None:
    one_or_two = (1, 2)
    assert _length_choices((one_or_two, one_or_two), 3) == ((1, 2), (1.0, 2.0))
    assert _length_choices((one_or_two, one_or_two), 4) == ((2,), (1.0,))
    assert _length_choices((one_or_two, ()), 2) == ((), ())


def test_a_line_without_any_way_is_an_error() -> None:
    with pytest.raises(KeyError):
        VERSE.line(Random(0), MAX_SYLLABLES + 1, "bird")


def test_shapes_are_short_and_different() -> None:
    shapes = line_shapes()
    assert max(len(shape.slots) for shape in shapes) <= MAX_SLOTS
    assert len({shape.slots for shape in shapes}) == len(shapes)
    assert all(slot.kind.islower() for shape in shapes for slot in shape.slots)
