import gzip
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from launch.build_cmudict import table_text
from rlhaiku.errors import BadInput
from rlhaiku.haiku.dictionary import Dictionary, _exceptions, load_dictionary, load_nltk
from rlhaiku.haiku.spelling import estimate


def held_out(word):
    """The tenth of words that measures the spelling rules and that nobody tunes on."""
    return hashlib.sha256(word.encode()).digest()[0] % 10 == 0


def test_the_exceptions_hold_no_word_of_the_held_out_tenth():
    assert not [word for word in _exceptions() if held_out(word) or held_out(word.lower())]
    assert len(_exceptions()) < 200


def test_the_bundled_table_is_complete_and_every_listed_word_is_spoken():
    table = load_dictionary().table
    assert len(table) == 126_052 + 84  # of which these are in upper case
    assert sum(word.isupper() and len(word) > 1 for word in table) == 84
    assert min(min(listed) for listed in table.values()) == 1
    assert all(len(set(listed)) == len(listed) for listed in table.values())


@pytest.mark.parametrize(
    ("word", "readings", "listed", "spelled"),
    [
        ("cat", (1,), True, False),
        ("fire", (2, 1), True, False),
        ("7", (2,), True, False),
        ("GPU", (3,), True, False),
        ("gpu", (3,), True, False),
        ("GPUs", (3,), True, False),
        ("GPU's", (3,), True, False),
        ("US", (2, 1), True, False),
        ("us", (1,), True, False),
        ("am", (1,), True, False),
        ("Am", (1,), True, False),
        ("AM", (1, 2), True, False),
        ("tv", (2, 4), True, False),
        ("vLLM", (4,), True, False),
        ("PyTorch", (2,), True, False),
        ("DevOps", (2,), True, False),
        ("SnowCat", (2,), True, False),
        ("XQZs", (3,), False, True),
        ("html", (4,), True, False),
        ("b", (1,), True, True),
        ("I", (1,), True, False),
        ("o", (1,), True, False),
        ("o'er", (1, 2), True, False),
        ("hawai'i", (3,), True, False),
        ("moon'll", (2,), True, False),
        ("sea'll", (1,), True, False),
        ("moonpath's", (2,), False, False),
        ("snow-cat", (2,), True, False),
        ("fire-fire", (4, 3, 2), True, False),
        ("zxqv", (4,), False, True),
        ("XQWZ", (6,), False, True),
        ("moonpetal", (3,), False, False),
    ],
)
def test_words(word, readings, listed, spelled):
    (spoken,) = load_dictionary().words(word)
    assert (spoken.readings, spoken.listed, spoken.spelled) == (readings, listed, spelled)


@pytest.mark.parametrize(
    ("word", "latin"), [("café", True), ("猫", False), ("сat", False), ("٣", False), ("ﬁre", True), ("Łódź", True)]
)
def test_only_latin_script_is_spoken(word, latin):
    (spoken,) = load_dictionary().words(word)
    assert (spoken.latin, spoken.readings != (0,)) == (latin, latin)


@pytest.mark.parametrize(
    ("word", "readings", "spelled", "pieces"),
    [
        ("U.S.A.", (3,), True, ("usa",)),
        ("U.S.A", (3,), True, ("usa",)),
        ("a.m.", (2,), True, ("am",)),
        ("J. F. K.", (3,), True, ("jfk",)),
        ("tideline", (2, 3), False, ("tide", "line")),
        ("goosebumps", (2, 3), False, ("goose", "bump")),
        ("finetune", (2, 3), False, ("fine", "tune")),
        ("don´t", (1,), False, ("don't",)),
        ("'Cats'", (1,), False, ("cat",)),
        ("cat-cat", (2,), False, ("cat", "cat")),
        ("catCat", (2,), False, ("cat", "cat")),
        ("moon's", (1,), False, ("moon",)),
        ("running", (2,), False, ("run",)),
        ("his", (1,), False, ("his",)),
    ],
)
def test_what_a_word_is_made_of(word, readings, spelled, pieces):
    (spoken,) = load_dictionary().words(word)
    assert (spoken.readings, spoken.spelled, spoken.pieces) == (readings, spelled, pieces)


def test_words_written_as_one_are_counted_better_by_their_parts():
    """Measured on the held-out tenth: 0.9459 by parts or spelling, 0.9422 by spelling alone."""
    table = load_dictionary().table
    words = {word: listed for word, listed in table.items() if word.isalpha() and held_out(word)}
    known = Dictionary({word: listed for word, listed in table.items() if word not in words}, "without the held-out")
    by_parts = sum(known._unlisted(word, word).readings[0] in listed for word, listed in words.items())
    assert by_parts / len(words) > 0.945 > sum(estimate(w) in listed for w, listed in words.items()) / len(words)


def original_lines():
    """Every pronunciation of one word in 25 of CMUdict, as its own data file has them."""
    return gzip.decompress((Path(__file__).parent / "cmudict_sample.dict.gz").read_bytes()).decode().splitlines()


def test_the_bundled_table_is_made_of_the_original_data():
    table, checked = load_dictionary().table, 0
    for counts, *words in map(str.split, table_text(original_lines()).splitlines()):
        assert {word: table[word] for word in words} == dict.fromkeys(words, tuple(map(int, counts.split(","))))
        checked += len(words)
    assert checked > 5000


def test_an_nltk_corpus_of_the_original_data_agrees(tmp_path, monkeypatch):
    pytest.importorskip("nltk", reason="nltk is not installed")
    folder = tmp_path / "corpora" / "cmudict"
    folder.mkdir(parents=True)
    with (folder / "cmudict").open("w", encoding="utf-8") as corpus:  # in the format of nltk's copy
        for entry, *phones in (line.split("#")[0].split() for line in original_lines() if line[0] != "#"):
            corpus.write(f"{entry.split('(')[0].upper()} 1 {' '.join(phones)}\n")
    monkeypatch.setattr("nltk.data.path", [])
    ours, theirs = load_dictionary().table, load_nltk(tmp_path).table
    differences = {word: (ours.get(word), counts) for word, counts in theirs.items() if ours.get(word) != counts}
    print(f"{len(differences)} of {len(theirs)} words differ:", *sorted(differences.items()), sep="\n")
    assert len(theirs) > 5000
    assert len(differences) <= 0.005 * len(theirs)
    assert load_nltk(tmp_path).readings("gone by 1999") == load_dictionary().readings("gone by 1999")


COST = """
import time
def resident_mib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024
from rlhaiku.haiku import load_dictionary
before, started = resident_mib(), time.process_time()
load_dictionary()
print(time.process_time() - started, resident_mib() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_loading_the_table_is_quick_and_small():
    """The best of several, in processes of their own: measured 0.035 s and 12.1 MiB."""
    runs = [subprocess.run([sys.executable, "-c", COST], capture_output=True, text=True, timeout=60) for _ in range(3)]
    costs = [tuple(map(float, run.stdout.split())) for run in runs]
    assert min(seconds for seconds, _ in costs) < 0.1
    assert min(mib for _, mib in costs) <= 15


def test_scoring_needs_no_network():
    code = """
import socket
def refuse(*_, **__):
    raise AssertionError("a socket was opened")
socket.socket = socket.create_connection = socket.getaddrinfo = refuse
from rlhaiku.haiku import HaikuReward
from rlhaiku.types import Prompt
poem = "an old silent pond / a frog jumps into the pond / zplash! silence again"
print(HaikuReward()(Prompt("p", "frog", "", ()), poem))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("Scored(total=1.0"), done.stderr


def test_a_missing_corpus_is_bad_input(tmp_path, monkeypatch):
    pytest.importorskip("nltk", reason="nltk is not installed")
    monkeypatch.setattr("nltk.data.path", [])
    with pytest.raises(BadInput, match="cmudict"):
        load_nltk(tmp_path)


def test_a_dictionary_of_ones_own():
    assert Dictionary({"pond": (1, 2)}, "mine").readings("pond") == (1, 2)


@pytest.mark.parametrize(("word", "glued", "pieces"), [
    ("autumn'ssoft", 1, ("autumn", "soft")), ("winter'sgrey", 1, ("winter", "grey")),
    ("WINTER'SGREY'S", 1, ("winter", "grey")), ("winter'sgreen'sStrong", 2, ("winter", "green", "strong")),
    ("grey-autumn'ssoft", 1, ("grey", "autumn", "soft")), ("winter'sgreen-grey", 1, ("winter", "green", "grey")),
    ("winter's", 0, ("winter",)), ("cats'", 0, ("cat",)), ("nor'easter", 0, ("nor'easter",)),
    ("xyzqe'sart", 0, ("xyzqe'sart",)), ("who'd", 0, ("who",)), ("o'shea", 0, ("o'shea",)),
    ("wander'st", 0, ("wander'st",)), ("thou'st", 0, ("thou'st",)), ("amid'st", 0, ("amidst",)),
])
def test_words_without_a_blank_after_a_possessive_are_glued(word, glued, pieces):
    [found] = load_dictionary().words(word)
    assert (found.glued, found.pieces) == (glued, pieces)
