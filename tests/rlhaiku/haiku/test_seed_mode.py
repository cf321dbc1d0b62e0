"""The tutorial's score by the description of its rules; its failures are in the table of `test_poems.py`."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhaiku.haiku.dictionary import load_dictionary
from rlhaiku.haiku.seed_mode import count_segment, seed_lines, seed_structure

POEM = "an old silent pond\na frog jumps into the pond\nsplash! silence again"


@pytest.mark.parametrize(
    ("text", "syllables"),
    [
        ("don't", 2),  # don, t
        ("autumn's", 3),
        ("café", 1),
        ("猫 7", 0),
        ("fire", 2),  # the first pronunciation only
        ("hmm shh", 0),
        ("gpu", 1),
        ("GPU", 3),
        ("WWX", 7),
        ("XQZABCD", 1),  # too long to be an acronym
        ("qzxe", 1),
        ("moonpetale", 3),
        ("<|im_end|>", 2),
        ("b c d", 3),
    ],
)
def test_syllables_by_the_tutorials_rules(text, syllables):
    assert count_segment(text, load_dictionary()) == syllables


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("a / b\nc", ["a", "b\nc"]),
        ("One. Two.\nThree", ["One", "Two.\nThree"]),
        ("a.\nb\n\nc", ["a.", "b", "c"]),
        ("//", []),
    ],
)
def test_segments_by_the_tutorials_rules(text, segments):
    assert [segment for segment, _ in seed_lines(text)] == segments


@pytest.mark.parametrize(
    ("text", "total"),
    [
        (POEM, 1.0),
        (POEM + "<|im_end|>", 0.75),
        (POEM + "\nI hope you like it", 0.75),
        ("an old still pond\na frog jumps in the pond\nsplash! calm again", 0.625),
        ("an old silent pond", 0.25),
        ("", 0.0),
    ],
)
def test_golden_scores(text, total):
    assert seed_structure(text) == total


@given(st.text(max_size=80))
def test_the_score_is_that_of_the_segments_shown(text):
    counts = [count for _, count in seed_lines(text)]
    points = {0: 0.25, 1: 0.125}
    expected = 0.25 * (len(counts) == 3) + sum(
        points.get(abs(count - target), 0.0) for count, target in zip(counts, (5, 7, 5), strict=False)
    )
    assert seed_structure(text) == expected


@given(st.from_regex(re.compile(r"[A-Za-z]{1,9}", re.ASCII), fullmatch=True))
def test_a_word_alone_is_counted_by_one_rule(word):
    lower, table = word.lower(), load_dictionary().table
    groups = len(re.findall("[aeiouy]+", lower))
    if lower in table:
        expected = (
            {table[lower][0], 0}
            if lower in ("fs", "hm", "hmm", "hmmm", "mm", "sh", "shh", "ths")
            else {table[lower][0]}
        )
    elif word.isupper() and 2 <= len(word) <= 6:
        expected = {len(word) + 2 * word.count("W")}
    else:
        expected = {max(1, groups - 1 if lower.endswith("e") and groups > 1 else groups)}
    assert count_segment(word, load_dictionary()) in expected
