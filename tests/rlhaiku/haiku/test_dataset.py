import hashlib
import json
import re

import pytest

from rlhaiku.errors import BadInput
from rlhaiku.haiku import dataset
from rlhaiku.haiku.dataset import (
    SYSTEM_PROMPT,
    embedded_rows,
    load_rows,
    prepare_embedded,
    prepare_rows,
    topic_split,
    user_prompt,
)
from rlhaiku.haiku.structure import score_structure
from rlhaiku.haiku.syllables import words
from rlhaiku.haiku.topic import singular


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "embedded"
    return directory, prepare_embedded(directory)


def row(topic, split):
    return {**embedded_rows()[0], "prompt_id": f"test/{topic}", "topic": topic, "split": split}


def test_rows_read_back_as_they_were_made(prepared):
    directory, _ = prepared
    for split in ("train", "test"):
        assert load_rows(directory, split) == [row for row in embedded_rows() if row["split"] == split]


def test_a_row_asks_and_never_answers():
    for row in embedded_rows():
        assert row["messages"] == [
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": user_prompt(row["topic"])},
        ]
    assert user_prompt("cat") == "Write me a haiku about cat."


def test_prompt_ids_are_unique_and_stable():
    ids = [row["prompt_id"] for row in embedded_rows()]
    assert len(set(ids)) == len(ids)
    assert "embedded/cat" in ids
    assert all(re.fullmatch(r"embedded/[a-z'-]+", prompt_id) for prompt_id in ids)


def test_no_head_word_is_in_both_splits():
    heads = {"train": set(), "test": set()}
    for row in embedded_rows():
        heads[row["split"]].add(singular(words(row["topic"])[-1]))
    assert not heads["train"] & heads["test"]


def test_about_a_fifth_of_the_topics_is_held_out():
    rows = embedded_rows()
    assert 0.15 <= sum(row["split"] == "test" for row in rows) / len(rows) <= 0.27


def test_the_split_follows_its_rule():
    assert topic_split("storms") == topic_split("winter storm") == topic_split("storm") == "train"
    assert topic_split("morning frost") == topic_split("frost") == "test"
    assert hashlib.sha256(b"frost").digest()[0] % 5 == 0


def test_references_are_haiku_about_their_topics():
    references = [row["reference"] for row in embedded_rows() if row["reference"]]
    assert references
    assert all(score_structure(reference).strict for reference in references)


def test_the_manifest_describes_the_files(prepared):
    directory, manifest = prepared
    assert json.loads((directory / "manifest.json").read_text()) == json.loads(json.dumps(manifest.to_dict()))
    assert manifest.source == "embedded"
    for file in manifest.files:
        content = (directory / file.name).read_bytes()
        assert file.sha256 == hashlib.sha256(content).hexdigest()
        assert file.rows == len(load_rows(directory, file.name.removesuffix(".parquet")))


def test_preparing_again_gives_the_same_bytes(prepared, tmp_path):
    assert prepare_embedded(tmp_path) == prepared[1]


def test_only_whole_files_are_left(prepared):
    assert sorted(path.name for path in prepared[0].iterdir()) == ["manifest.json", "test.parquet", "train.parquet"]


def test_a_write_that_fails_keeps_the_old_file_and_no_new_one(tmp_path, monkeypatch):
    def no_space(_descriptor):
        raise OSError("no space left")

    target = tmp_path / "train.parquet"
    target.write_bytes(b"old")
    monkeypatch.setattr(dataset.os, "fsync", no_space)
    with pytest.raises(OSError, match="no space left"):
        dataset._write_atomically(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["train.parquet"]
    assert target.read_bytes() == b"old"


def test_rows_are_read_from_the_file_of_now(tmp_path):
    for topics in (["rain"], ["fog", "mist"]):
        rows = [*(row(topic, "train") for topic in topics), row("snow", "test")]
        prepare_rows(rows, tmp_path, source="test", split_rule="by hand")
        assert [row["topic"] for row in load_rows(tmp_path, "train")] == topics


def test_reading_says_nothing(prepared, capfd):
    load_rows(prepared[0], "train")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("rain", "train"), ("rain", "test")], "every row needs a prompt id of its own; got 'test/rain'"),
        ([("rain", "train")], "the test split needs rows; got 0"),
        ([], "the train split needs rows; got 0"),
    ],
)
def test_rows_that_make_no_data_set_are_refused_before_anything_is_written(tmp_path, rows, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        prepare_rows([row(*pair) for pair in rows], tmp_path / "new", source="test", split_rule="by hand")
    assert not (tmp_path / "new").exists()


def test_data_that_is_not_there_is_bad_input(tmp_path, prepared):
    with pytest.raises(BadInput, match=r"data needs a file train\.parquet; got .*rlhaiku prepare"):
        load_rows(tmp_path, "train")
    with pytest.raises(BadInput, match="the split must be one of train, test; got 'eval'"):
        load_rows(prepared[0], "eval")
