"""The tutorial's data set, statworx/haiku: some 27,000 poems from the web with a phrase that says what each is about.

Its licence is unknown, so it is downloaded when a person prepares it and never redistributed. `topics` splits it like
the embedded prompts, by topic; `tutorial` splits by row as the tutorial does, and keeps the tutorial's columns.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from rlhaiku.errors import BadInput
from rlhaiku.haiku.dataset import (
    EMBEDDED,
    EMBEDDED_SPLIT_RULE,
    SYSTEM_PROMPT,
    Manifest,
    Message,
    Row,
    no_progress_bars,
    prepare_embedded,
    prepare_rows,
    topic_split,
    user_prompt,
)
from rlhaiku.haiku.spelling import words

SOURCE = "statworx/haiku"
SplitMode = Literal["topics", "tutorial"]
SPLIT_RULES: dict[SplitMode, str] = {
    "topics": EMBEDDED_SPLIT_RULE,
    "tutorial": "test is the last fifth of the rows, at most 1000",
}


def prepare(output: Path, source: str = EMBEDDED, split: SplitMode = "topics") -> Manifest:
    """Writes a data set to the directory `output`; see `prepare_rows`.

    `source`: `embedded`, or what `datasets.load_dataset` takes: `statworx/haiku`, or a directory with its parquet file.
    Raises BadInput if it cannot be read or lacks the columns.
    """
    if source == EMBEDDED:
        if split != "topics":
            raise BadInput("the embedded prompts are split by topics", split, "Leave it out, or use statworx/haiku.")
        return prepare_embedded(output)
    rows = poem_rows(_download(source), split)
    return prepare_rows(rows, output, source=source, split_rule=SPLIT_RULES[split])


def poem_rows(poems: Iterable[Mapping[str, Any]], split: SplitMode) -> list[Row]:
    """A row for each poem with a topic; `poems` have at least `text`, its lines separated by ` / `, and `keywords`."""
    numbered = [(i, poem) for i, poem in enumerate(poems) if words(str(poem["keywords"] or ""))]
    num_train = len(numbered) - min(1000, int(0.2 * len(numbered)))
    rows = []
    for position, (number, poem) in enumerate(numbered):
        row = _row(number, poem)
        if split == "tutorial":
            row["split"] = "train" if position < num_train else "test"
            row = cast(Row, {**_tutorial_columns(row, poem), **row})
        rows.append(row)
    return rows


def _row(number: int, poem: Mapping[str, Any]) -> Row:
    topic = str(poem["keywords"]).lower()
    messages = [
        Message(role="system", content=SYSTEM_PROMPT),
        Message(role="user", content=user_prompt(topic)),
    ]
    reference = "\n".join(line.strip() for line in str(poem["text"]).split("/"))
    return Row(
        prompt_id=f"statworx/{number:06d}", topic=topic, theme="", messages=messages, reference=reference,
        split=topic_split(topic),
    )  # fmt: skip


def _tutorial_columns(row: Row, poem: Mapping[str, Any]) -> dict[str, Any]:
    """What the tutorial's trainer reads, and every column of the source but `keywords`."""
    rendered = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in row["messages"])
    return {
        **{name: value for name, value in poem.items() if name != "keywords"},
        "question": user_prompt(row["topic"]),
        "label": poem["text"],
        "prompt": rendered,  # for people: the trainer renders `messages` itself, with a generation prompt
        "metadata": {"topic": row["topic"], "reference": row["reference"]},
    }


def _download(source: str) -> list[dict[str, Any]]:
    import datasets

    try:
        with no_progress_bars():
            table = datasets.load_dataset(source, split="train")
    except Exception as error:  # the hub, the network and the parquet reader each have their own
        remedy = f"Use {EMBEDDED}, which needs no network. {type(error).__name__}: {error}"
        raise BadInput("the source of the data set must be readable", source, remedy) from None
    if missing := {"text", "keywords"} - set(table.column_names):
        raise BadInput("poems need the columns text and keywords", sorted(missing), f"Use {SOURCE}.")
    poems: list[dict[str, Any]] = table.to_list()
    return poems
