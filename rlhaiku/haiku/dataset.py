"""The data set: one prompt per topic, train and test topics disjoint, as parquet with a manifest.

    topics.toml, references.toml -> embedded_rows -> prepare_rows -> train.parquet, test.parquet, manifest.json
    train.parquet -> load_rows

A source of rows decides `split` itself, so another source (with another split rule) is one more function that
returns rows.
"""

import hashlib
import io
import json
import os
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypedDict

from rlhaiku.errors import BadInput
from rlhaiku.haiku.spelling import words
from rlhaiku.haiku.topic import singular

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")

SYSTEM_PROMPT = "You are a haiku poet. You will be given a prompt and you will need to write a haiku about the prompt."

EMBEDDED = "embedded"
"""Name of the source that comes with the package."""
EMBEDDED_SPLIT_RULE = "test when sha256(singular of the topic's last word)[0] % 5 == 0"


class Message(TypedDict):
    """One turn of a chat."""

    role: Literal["system", "user"]
    content: str


class Row(TypedDict):
    """One prompt of the data set."""

    prompt_id: str
    """Source and topic, e.g. `embedded/cat`; unique."""
    topic: str
    """Lower case."""
    theme: str
    messages: list[Message]
    """The system and the user turn; never an answer, the policy would copy it."""
    reference: str
    """A poem about the topic, lines separated by newlines; empty if there is none."""
    split: Split


@dataclass(frozen=True, slots=True)
class DataFile:
    """One written file."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `prepare_rows` wrote."""

    source: str
    split_rule: str
    files: tuple[DataFile, ...]

    def to_dict(self) -> dict[str, Any]:
        """The manifest as `manifest.json` has it."""
        return asdict(self)


def user_prompt(topic: str) -> str:
    """What the user asks for."""
    return f"Write me a haiku about {topic}."


def topic_split(topic: str) -> Split:
    """The split of an embedded topic, about one in five in test.

    It hangs on the singular of the last word alone, so `storm`, `storms` and `winter storm` are never on both sides.
    """
    *_, head = words(topic)
    return "train" if hashlib.sha256(singular(head).encode()).digest()[0] % 5 else "test"


def embedded_rows() -> list[Row]:
    """A row for every topic of `rlhaiku/assets/topics.toml`, in the file's order, with its reference if it has one."""
    themes = _asset("topics.toml")["themes"]
    references = {haiku["topic"]: haiku["text"].strip() for haiku in _asset("references.toml")["haiku"]}
    return [
        Row(
            prompt_id=f"{EMBEDDED}/{topic.replace(' ', '-')}",
            topic=topic,
            theme=theme,
            messages=[
                Message(role="system", content=SYSTEM_PROMPT),
                Message(role="user", content=user_prompt(topic)),
            ],
            reference=references.get(topic, ""),
            split=topic_split(topic),
        )
        for theme, topics in themes.items()
        for topic in topics
    ]


def prepare_embedded(output: Path) -> Manifest:
    """Writes the embedded data set to the directory `output`; see `prepare_rows`."""
    return prepare_rows(embedded_rows(), output, source=EMBEDDED, split_rule=EMBEDDED_SPLIT_RULE)


def prepare_rows(rows: Sequence[Row], output: Path, *, source: str, split_rule: str) -> Manifest:
    """Writes `train.parquet`, `test.parquet` and `manifest.json` to the directory `output`, making it if need be.

    Each file appears whole or not at all, and the manifest last: a manifest that agrees with the files means that
    all of them are of one run. Raises BadInput if prompt ids repeat or a split has no rows.
    """
    _require_unique([row["prompt_id"] for row in rows])
    parquet = {split: _parquet([row for row in rows if row["split"] == split], split) for split in SPLITS}
    output.mkdir(parents=True, exist_ok=True)
    files = []
    for split, content in parquet.items():
        name = _file_name(split)
        _write_atomically(output / name, content)
        count = sum(row["split"] == split for row in rows)
        files.append(DataFile(name, count, hashlib.sha256(content).hexdigest()))
    manifest = Manifest(source, split_rule, tuple(files))
    _write_atomically(output / "manifest.json", (json.dumps(manifest.to_dict(), indent=2) + "\n").encode())
    return manifest


def load_rows(path: Path, split: str) -> list[dict[str, Any]]:
    """The rows of one split, `train` or `test`, of the data set in the directory `path`; never uses the network.

    Raises BadInput if there is no such split.
    """
    if split not in SPLITS:
        raise BadInput(f"the split must be one of {', '.join(SPLITS)}", split, "Correct its name.")
    file = Path(path) / _file_name(split)
    if not file.is_file():
        raise BadInput(f"data needs a file {file.name}", str(path), "Make one with `rlhaiku prepare`.")
    import datasets

    # A cache of its own: the shared one is keyed by path and would outlive a file that was prepared again.
    with no_progress_bars(), tempfile.TemporaryDirectory(prefix="rlhaiku-data-") as cache:
        table = datasets.Dataset.from_parquet(str(file), cache_dir=cache, keep_in_memory=True)
        rows: list[dict[str, Any]] = table.to_list()
    return rows


def _asset(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files("rlhaiku").joinpath("assets", name).read_text(encoding="utf-8"))


def _file_name(split: str) -> str:
    return f"{split}.parquet"


def _require_unique(prompt_ids: Iterable[str]) -> None:
    seen: set[str] = set()
    for prompt_id in prompt_ids:
        if prompt_id in seen:
            raise BadInput("every row needs a prompt id of its own", prompt_id, "Remove or rename one of the rows.")
        seen.add(prompt_id)


def _parquet(rows: Sequence[Row], split: str) -> bytes:
    """`rows` as the bytes of a parquet file."""
    if not rows:
        raise BadInput(f"the {split} split needs rows", 0, "Give the source more topics, or change its split rule.")
    import datasets

    buffer = io.BytesIO()
    with no_progress_bars():
        datasets.Dataset.from_list(list(rows)).to_parquet(buffer)
    return buffer.getvalue()


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keeps `datasets` silent, and leaves its setting as it was."""
    from datasets.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _write_atomically(path: Path, content: bytes) -> None:
    """Writes beside `path`, flushes to the disk, renames: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
