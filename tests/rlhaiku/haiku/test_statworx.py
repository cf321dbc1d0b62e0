"""The tutorial's data set, from a file like the one it comes in."""

import hashlib
import json

import datasets
import pytest

from rlhaiku.errors import BadInput
from rlhaiku.haiku.dataset import load_rows
from rlhaiku.haiku.statworx import poem_rows, prepare

POEMS = [
    {"source": "made", "text": f"Line {i} one. / Line two is longer. / Line three.", "keywords": keywords,
     "gruen_score": i / 10}
    for i, keywords in enumerate(["Eyes dance", "quit friend", "storm", "storms", "winter storm", None, "", "frog",
                                  "river", "feel alone", "moon", "old moon"])
]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    directory = tmp_path_factory.mktemp("statworx")
    datasets.Dataset.from_list(POEMS).to_parquet(directory / "train.parquet")
    return str(directory)


def test_topics_are_on_one_side_only(source, tmp_path):
    prepare(tmp_path, source)
    topics = {split: {row["topic"] for row in load_rows(tmp_path, split)} for split in ("train", "test")}
    assert len(topics["train"] | topics["test"]) == 10, "poems without a topic are left out"
    sides = [{side for side in topics if topic in topics[side]} for topic in ("storm", "storms", "winter storm")]
    assert sides[0] == sides[1] == sides[2]


def test_the_tutorials_rule_is_the_last_fifth_of_the_rows_at_most_1000(source, tmp_path):
    prepare(tmp_path, source, "tutorial")
    assert [row["topic"] for row in load_rows(tmp_path, "test")] == ["moon", "old moon"]
    many = poem_rows([POEMS[0]] * 6000, "tutorial")
    assert sum(row["split"] == "test" for row in many) == 1000
    assert [row["split"] for row in many[4999:5001]] == ["train", "test"]


def test_the_tutorials_columns_are_kept(source, tmp_path):
    prepare(tmp_path, source, "tutorial")
    row = load_rows(tmp_path, "train")[0]
    assert row["question"] == "Write me a haiku about eyes dance."
    assert row["label"] == POEMS[0]["text"] and row["gruen_score"] == 0 and row["source"] == "made"
    assert "keywords" not in row
    assert row["prompt"].endswith("<|im_start|>user\nWrite me a haiku about eyes dance.<|im_end|>\n")
    assert row["metadata"] == {"topic": "eyes dance", "reference": "Line 0 one.\nLine two is longer.\nLine three."}


@pytest.mark.parametrize("split", ["topics", "tutorial"])
def test_no_prompt_has_an_answer_in_it(source, tmp_path, split):
    prepare(tmp_path, source, split)
    for row in load_rows(tmp_path, "train") + load_rows(tmp_path, "test"):
        assert [turn["role"] for turn in row["messages"]] == ["system", "user"]
        assert "Line" not in json.dumps(row["messages"]) and "Line" not in row.get("prompt", "")
        assert row["reference"].count("\n") == 2


def test_the_manifest_agrees_with_the_files(source, tmp_path):
    prepare(tmp_path, source)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["source"] == source and "sha256(" in manifest["split_rule"]
    for file in manifest["files"]:
        assert hashlib.sha256((tmp_path / file["name"]).read_bytes()).hexdigest() == file["sha256"]
    assert sum(file["rows"] for file in manifest["files"]) == 10


def test_a_source_that_cannot_be_read_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match="must be readable"):
        prepare(tmp_path, str(tmp_path / "nowhere"))
    datasets.Dataset.from_list([{"text": "a"}]).to_parquet(tmp_path / "in" / "train.parquet")
    with pytest.raises(BadInput, match="need the columns"):
        prepare(tmp_path / "out", str(tmp_path / "in"))
    with pytest.raises(BadInput, match="split by topics"):
        prepare(tmp_path, "embedded", "tutorial")
