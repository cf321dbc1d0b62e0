"""Judgements on disk: an SQLite file that any number of processes of one machine share."""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

from rlhaiku.errors import BadInput
from rlhaiku.judge.parsing import Judged
from rlhaiku.judge.rubric import PoemToJudge

LOCK_WAIT_S = 5.0


class JudgeCache:
    """Scores and points by `cache_key`; failures are never kept. The file must be on a local disk (WAL)."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS judgements (key TEXT PRIMARY KEY, score REAL, points TEXT)")
        except (sqlite3.Error, OSError) as error:
            remedy = f"{error}. Name another file on a local disk."
            raise BadInput("the judge's cache must be a writable SQLite file", str(path), remedy) from error

    def get(self, keys: Iterable[str]) -> dict[str, Judged]:
        """The judgements that are known; raises sqlite3.Error."""
        found = {}
        for key in keys:
            row = self._db.execute("SELECT score, points FROM judgements WHERE key = ?", (key,)).fetchone()
            if row is not None:
                found[key] = Judged(row[0], json.loads(row[1]))
        return found

    def put(self, judgements: Mapping[str, Judged]) -> None:
        """Adds judgements in one transaction; the first to write a key wins. Raises sqlite3.Error."""
        if not judgements:
            return
        rows = [(key, judged.score, json.dumps(dict(judged.points))) for key, judged in judgements.items()]
        values = ", ".join(["(?, ?, ?)"] * len(rows))
        cells = [cell for row in rows for cell in row]
        self._db.execute(f"INSERT OR IGNORE INTO judgements VALUES {values}", cells)

    def close(self) -> None:
        """Closes the file."""
        self._db.close()


def cache_key(poem: PoemToJudge, model: str, rubric: str, batch: int) -> str:
    """SHA-256 over all that a score depends on: the model, the rubric's version, the batch size and the poem."""
    parts = json.dumps([model, rubric, batch, poem.topic, poem.text, poem.reference])
    return hashlib.sha256(parts.encode()).hexdigest()
