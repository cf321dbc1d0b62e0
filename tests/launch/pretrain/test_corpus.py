"""The corpus is as varied, and its haiku as mediocre, as the base model needs."""

from random import Random

import pytest

from launch.pretrain.corpus import (
    HAIKU_METER,
    SYSTEM_PROMPT,
    Document,
    corpus_statistics,
    haiku_meter,
    mentions,
    structure_score,
    write_documents,
)
from launch.pretrain.verse import Line, Poem, Verse

VERSE = Verse()
DOCUMENTS = write_documents(VERSE, seed=0, chunk=0, count=6000)
STATISTICS = corpus_statistics(DOCUMENTS)


def _document(form: str, topic: str, *lines: tuple[str, int, str]) -> Document:
    poem = Poem(tuple(Line(*line) for line in lines), "\n".join(text for text, _, _ in lines))
    return Document(form, topic, "", poem)


def test_variety() -> None:
    assert STATISTICS.distinct_words >= 2000
    assert STATISTICS.largest_line_template_share <= 0.02
    assert STATISTICS.largest_poem_template_share <= 0.02


def test_haiku_are_mediocre() -> None:
    assert 0.35 <= STATISTICS.haiku_share <= 0.40
    assert STATISTICS.haiku_structure_mean == pytest.approx(0.50, abs=0.03)
    assert STATISTICS.strict_share <= 0.10


def test_poems_name_their_topics() -> None:
    assert STATISTICS.topic_mention_share >= 0.90
    assert {document.topic for document in DOCUMENTS} == set(VERSE.topics)


def test_the_meter_of_haiku_is_noisy() -> None:
    rng = Random(5)
    meters = [haiku_meter(rng) for _ in range(20_000)]
    assert sum(map(structure_score, meters)) / len(meters) == pytest.approx(0.50, abs=0.02)
    assert sum(len(meter) == 3 for meter in meters) / len(meters) == pytest.approx(0.85, abs=0.02)
    assert {length for meter in meters for length in meter} == set(range(3, 10))


@pytest.mark.parametrize(
    ("meter", "score"),
    [((5, 7, 5), 1.0), ((5, 7), 0.5), ((4, 8, 5), 0.75), ((5, 7, 5, 7), 0.75), ((1, 1, 1), 0.25), ((), 0.0)],
)
def test_structure_score(meter: tuple[int, ...], score: float) -> None:
    assert structure_score(meter) == score


@pytest.mark.parametrize(
    ("text", "named"), [("the cat's bowl", True), ("two Cats.", True), ("a catalog", False), ("bobcat", False)]
)
def test_mentions(text: str, named: bool) -> None:
    assert mentions(text, "cat") is named


def test_a_topic_of_two_words_may_cross_lines() -> None:
    assert mentions("first\nsnow", "first snow")


def test_statistics_of_a_small_corpus() -> None:
    statistics = corpus_statistics(
        [
            _document("haiku", "owl", ("the owl", 5, "DET NOUN"), ("a moon", 7, "DET NOUN"), ("far", 5, "ADV")),
            _document("line", "fox", ("the old owl", 3, "DET ADJ NOUN")),
        ]
    )
    assert statistics.as_dict() == {
        "documents": 2,
        "distinct_words": 6,
        "haiku_share": 0.5,
        "haiku_structure_mean": 1.0,
        "haiku_strict_share": 1.0,
        "strict_share": 0.5,
        "topic_mention_share": 0.5,
        "largest_line_template_share": 0.5,
        "largest_poem_template_share": 1.0,
        "line_counts": {1: 1, 3: 1},
        "line_lengths": {3: 1, 5: 2, 7: 1},
    }


def test_requests() -> None:
    requests = {document.request.replace(document.topic, "X") for document in DOCUMENTS}
    assert "Write me a haiku about X." in requests
    assert "Write a line of seven syllables about X." in requests
    assert "Write me three lines of five syllables about X." in requests
    tanka = next(document for document in DOCUMENTS if document.form == "tanka")
    assert tanka.poem.meter == (*HAIKU_METER, 7, 7)


def test_the_system_prompt_is_the_one_the_haiku_requests_use() -> None:
    dataset = pytest.importorskip("rlhaiku.haiku.dataset")
    assert dataset.SYSTEM_PROMPT == SYSTEM_PROMPT
    assert dataset.user_prompt("otter") == "Write me a haiku about otter."


def test_chunks_are_reproducible_and_different() -> None:
    first = write_documents(VERSE, seed=7, chunk=1, count=20)
    assert first == write_documents(Verse(), seed=7, chunk=1, count=20)
    assert first != write_documents(VERSE, seed=7, chunk=2, count=20)
