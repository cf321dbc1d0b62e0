"""The shipped words, topics and reference haiku: true to the dictionary and to each other."""

import re
import tomllib
from pathlib import Path

import pytest

from launch.pretrain.lexicon import LEXICON_FILE, TOPICS_FILE, load_lexicon, load_topics
from rlhaiku.haiku.syllables import count, count_line, readings
from rlhaiku.haiku.topic import mentions_topic

ENTRIES = sorted(set(re.findall(r"([^\s,\"]+)/(\d+)", LEXICON_FILE.read_text(encoding="utf-8").split("[nouns]")[1])))
REFERENCES = tomllib.loads(Path(TOPICS_FILE).with_name("references.toml").read_text(encoding="utf-8"))["haiku"]
# The first reading counts; "a", "for", "the" and "spring" are listed with odd second ones.
SEVERAL_READINGS = {"for", "spring"}


def test_every_count_is_the_dictionarys() -> None:
    wrong = [(text, n) for text, n in ENTRIES if sum(map(count, text.split("_"))) != int(n)]
    assert wrong == []


def test_words_have_one_reading() -> None:
    unsure = {word for text, _ in ENTRIES for word in text.split("_") if len(readings(word)) > 1}
    assert unsure <= SEVERAL_READINGS


def test_words_are_plain() -> None:
    assert [text for text, _ in ENTRIES if not re.fullmatch(r"[a-z]+(?:_[a-z]+)*", text)] == []


def test_there_are_enough_words() -> None:
    short = [word for text, n in ENTRIES if int(n) <= 4 for word in text.split("_")]
    assert len(set(short)) >= 2000


def test_the_lexicon_knows_each_word_on_its_own() -> None:
    syllables = load_lexicon().syllables
    assert {word: n for word, n in syllables.items() if count(word) != n} == {}
    assert syllables["an"] == 1


def test_a_mass_noun_has_neither_plural_nor_article() -> None:
    weather = load_lexicon().nouns["weather"]
    assert set(weather["snow"].forms()) == {"noun", "mass"}
    assert set(weather["storm"].forms()) == {"noun", "count", "plural"}


def test_objects_and_subjects_are_inverse() -> None:
    lexicon = load_lexicon()
    pairs = {(subject, target) for subject, targets in lexicon.objects.items() for target in targets}
    assert pairs == {(subject, target) for target, subjects in lexicon.subjects.items() for subject in subjects}
    assert all(("take_third", *pair) in lexicon.pools for pair in pairs)


def test_topics() -> None:
    topics = load_topics()
    assert len(topics) == 240
    assert sum(" " in topic for topic in topics) <= 20
    assert {"modal", "sandbox", "volume", "function", "inference"} <= topics.keys()
    assert sum(theme == "computing" for theme in topics.values()) >= 25
    assert [topic for topic in topics if topic != topic.lower()] == []


def test_every_topic_is_a_noun_of_its_theme() -> None:
    nouns = load_lexicon().nouns
    assert [topic for topic, theme in load_topics().items() if topic not in nouns[theme]] == []


def test_references_are_about_sixty_different_topics() -> None:
    topics = [reference["topic"] for reference in REFERENCES]
    assert len(topics) == len(set(topics)) >= 60
    assert sum(load_topics()[topic] == "computing" for topic in topics) >= 8


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference["topic"])
def test_a_reference_is_a_haiku_about_its_topic(reference: dict[str, str]) -> None:
    assert [count_line(line) for line in reference["text"].split("\n")] == [5, 7, 5]
    assert mentions_topic(reference["text"], reference["topic"])
