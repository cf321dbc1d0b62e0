"""The sample ledger: every group's life in one SQLite file, so that a crash loses nothing and trains nothing twice.

    claimed -> generated -> scored -> trained, or dropped with the reason

The run writes it as an `EventSink`, one transaction per event; a resume begins a new attempt, which rolls back what the
checkpoint does not know, and recalls what was already generated and scored. `schema.py` has the tables and queries to
read them with `sqlite3` while the run goes on.

A kill of the process loses no recorded event. After a power cut the file is intact but may end early; `backup` makes
everything before it durable, so it never ends before the checkpoint it was called for.
"""

import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from rlhaiku.errors import BadInput, OutputFailed, RunFailed
from rlhaiku.events import GroupEvent, GroupsClaimed, GroupsDropped, GroupsGenerated, GroupsScored, GroupsTrained
from rlhaiku.files import flush, refused, writing
from rlhaiku.ledger.rows import completion_row, read_completion, read_reward, reward_row, wanted
from rlhaiku.ledger.schema import APPLICATION_ID, TABLES, VERSION
from rlhaiku.types import Group, GroupKey, GroupRequest, ScoredGroup

RESTORE = (
    "Move it away together with its -wal and -shm files; then copy the ledger.sqlite of the newest checkpoint into its "
    "place, or go on without the history."
)
CHECKPOINT_PAGES = 16_384
"""Of the log, when SQLite itself moves it into the file and waits for the disk; `backup` does at every checkpoint."""
BUSY_TIMEOUT_S = 10.0
"""How long to wait for somebody who locks the file by hand; readers never do."""

_BEFORE = {
    "generated": "'claimed'",
    "scored": "'claimed', 'generated'",  # straight from `claimed`: a recalled group
    "trained": "'scored'",
    "dropped": "'claimed', 'generated', 'scored'",
}
_ADVANCE = {
    status: f"UPDATE groups SET status = '{status}', reason = ?, updated_at = ? WHERE claim = ? AND attempt = ? "
    f"AND pass_index = ? AND prompt_id = ? AND step = coalesce(?, step) AND status IN ({before})"
    for status, before in _BEFORE.items()
}
_CLAIM = """
INSERT INTO groups (claim, attempt, step, pass_index, prompt_id, topic, prompt_sha256, group_size, temperature,
    max_tokens, weight_version, status, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'claimed', ?)"""
_GENERATE = """
INSERT OR IGNORE INTO completions (claim, attempt, completion, weight_version, finish_reason, num_tokens, text,
    token_ids, logprobs) VALUES (?, ?, ?, ?, ?, ?, CAST(? AS TEXT), ?, ?)"""
_SCORE = """
UPDATE completions SET total = ?, total_bits = ?, components = ?, unscored = ?
    WHERE claim = ? AND attempt = ? AND completion = ?"""
_FIND = """
SELECT attempt, step FROM groups JOIN attempts USING (attempt) WHERE claim = ? AND rolled_back_by IS NOT NULL
    AND pruned = 0 AND status != 'claimed' AND pass_index = ? AND prompt_id = ? AND prompt_sha256 = ?
    AND group_size = ? AND temperature = ? AND max_tokens = ?
    AND fingerprint = (SELECT fingerprint FROM attempts WHERE attempt = ?) ORDER BY attempt DESC"""
_READ = """
SELECT token_ids, logprobs, text, finish_reason, weight_version, total_bits, components FROM completions
    WHERE claim = ? AND attempt = ? ORDER BY completion"""
_PRUNE_COMPLETIONS = """
UPDATE completions SET token_ids = NULL, logprobs = NULL, text = NULL
    WHERE (claim, attempt) IN (SELECT claim, attempt FROM groups WHERE step < ? AND pruned = 0)"""
_SETTLED_STEPS = """
SELECT step FROM groups WHERE rolled_back_by IS NULL GROUP BY step HAVING min(status IN ('trained', 'dropped'))"""
_LINEAGE = """
SELECT step, attempt, status, claim FROM groups
    WHERE rolled_back_by IS NULL AND status IN ('trained', 'dropped') ORDER BY step, claim"""


class LedgerUnusable(BadInput):
    """The file cannot serve as this run's ledger; nothing in it was changed."""


class LedgerLocked(LedgerUnusable):
    """Another process is writing this ledger."""


class LedgerFailed(RunFailed):
    """An event could not be recorded, or contradicts what was recorded before."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """What earlier attempts left for some requests, each part in the order of the requests."""

    scored: tuple[ScoredGroup, ...] = ()
    """Ready to train."""
    generated: tuple[Group, ...] = ()
    """To be scored: they never were, or a reward was missing (perhaps the judge is back)."""
    missing: tuple[GroupRequest, ...] = ()
    """To be generated."""


@dataclass(frozen=True, slots=True)
class StepLineage:
    """The claims one train step of the final weights is made of, in claim order."""

    step: int
    attempt: int
    """The attempt that trained it."""
    trained: tuple[int, ...]
    dropped: tuple[int, ...]


class Ledger:
    """An open ledger, and the only one to write it. An `EventSink` once an attempt has begun."""

    def __init__(self, path: Path, backup: Path | None = None) -> None:
        """Opens the file, or where it is missing makes it, from `backup` if there is one.

        Raises LedgerLocked, LedgerUnusable, or OutputFailed when the disk is full or read-only.
        """
        self.path = path
        self._attempt: int | None = None
        self._lock = _take_lock(path)
        try:
            if not path.exists():
                _restore(path, backup)
            self._db = _open(path)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file; may be called twice."""
        self._db.close()
        self._lock.close()

    def begin_attempt(self, resumed_step: int, fingerprint: str = "") -> int:
        """Starts the next attempt from a checkpoint of `resumed_step` train steps; returns its number, from 1.

        Rows of `resumed_step` and later steps leave the lineage; they stay readable, and attempts of the same
        `fingerprint` (of all that decides the weights) can recall them.
        Raises LedgerUnusable when the ledger lacks a step that the checkpoint has.
        """
        self._check_reaches(resumed_step)
        with self._transaction("begin an attempt"):
            row = (resumed_step, time.time(), fingerprint)
            insert = "INSERT INTO attempts (resumed_step, started_at, fingerprint) VALUES (?, ?, ?)"
            attempt = self._db.execute(insert, row).lastrowid
            roll_back = "UPDATE groups SET rolled_back_by = ? WHERE step >= ? AND rolled_back_by IS NULL"
            self._db.execute(roll_back, (attempt, resumed_step))
        assert attempt is not None
        self._attempt = attempt
        return attempt

    def last_fingerprint(self) -> str:
        """That of the newest attempt; empty if there was none."""
        row = self._db.execute("SELECT fingerprint FROM attempts ORDER BY attempt DESC LIMIT 1").fetchone()
        return row[0] if row else ""

    def record(self, event: GroupEvent) -> None:
        """Writes one event; evaluation groups are left out. Raises LedgerFailed."""
        with self._transaction(f"record {type(event).__name__}"):
            match event:
                case GroupsClaimed():
                    self._claimed(event)
                case GroupsGenerated():
                    self._generated([group for group in event.groups if not group.key.is_eval])
                case GroupsScored():
                    self._scored([scored for scored in event.groups if not scored.key.is_eval])
                case GroupsDropped():
                    for key, reason in event.reasons.items():
                        self._advance(key, "dropped", event.step, reason)
                case GroupsTrained():
                    for key in event.keys:
                        self._advance(key, "trained", event.stats.step)

    def recall(self, requests: Sequence[GroupRequest], max_staleness: int = 0) -> Recalled:
        """Finds what rolled-back attempts already did for these requests.

        Weight versions must be those asked for, or older by as much as `max_staleness` allows in the group's step: what
        was claimed one step ahead before a checkpoint stays one version behind after it.
        """
        scored, generated, missing = [], [], []
        for request in requests:
            found = self._recall(request, max_staleness)
            if isinstance(found, ScoredGroup):
                scored.append(found)
            elif isinstance(found, Group):
                generated.append(found)
            else:
                missing.append(request)
        return Recalled(tuple(scored), tuple(generated), tuple(missing))

    def lineage(self) -> list[StepLineage]:
        """What the final weights were trained on, step by step: proof that every claim is there exactly once."""
        steps = []
        for (step, attempt), rows in groupby(self._db.execute(_LINEAGE), key=lambda row: row[:2]):
            settled = [row[2:] for row in rows]
            trained, dropped = (
                tuple(claim for status, claim in settled if status == wanted) for wanted in ("trained", "dropped")
            )
            if trained:  # else the run ended between dropping some groups of the step and training the others
                steps.append(StepLineage(step, attempt, trained, dropped))
        return steps

    def backup(self, path: Path) -> None:
        """Writes a complete copy, a single file; until it is complete, `path` stays what it was."""
        partial = path.with_name(f".{path.name}.partial")
        partial.unlink(missing_ok=True)
        try:
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()  # flushes the live file too
            copy = sqlite3.connect(partial, isolation_level=None)
            try:
                self._db.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE").fetchall()  # no -wal beside it: one file to move around
            finally:
                copy.close()
        except sqlite3.Error as error:
            raise LedgerFailed(f"cannot back up {self.path} to {path}: {error}") from error
        flush(partial)
        partial.replace(path)
        flush(path.parent)

    def prune(self, before_step: int) -> None:
        """Forgets token ids, logprobs and texts of steps below `before_step`; they can't be recalled any more."""
        with self._transaction("prune"):
            self._db.execute(_PRUNE_COMPLETIONS, (before_step,))
            self._db.execute("UPDATE groups SET pruned = 1 WHERE step < ? AND pruned = 0", (before_step,))

    def _claimed(self, event: GroupsClaimed) -> None:
        now = time.time()
        rows = [
            (r.key.claim, self._attempt, event.step, *wanted(r)[1:3], r.prompt.topic, *wanted(r)[3:],
             r.weight_version, now)
            for r in event.requests
            if not r.key.is_eval
        ]
        self._db.executemany(_CLAIM, rows)

    def _generated(self, groups: Sequence[Group]) -> None:
        for group in groups:
            self._advance(group.key, "generated")
        self._insert(groups)

    def _scored(self, groups: Sequence[ScoredGroup]) -> None:
        for scored in groups:
            self._advance(scored.key, "scored")
        rows = [(*reward_row(reward), each.key.claim, self._attempt, i)
                for each in groups for i, reward in enumerate(each.rewards)]
        if self._db.executemany(_SCORE, rows).rowcount < len(rows):  # some were recalled, and are not there yet
            self._insert([scored.group for scored in groups])
            self._db.executemany(_SCORE, rows)

    def _insert(self, groups: Sequence[Group]) -> None:
        """Stores the completions, unless they are there already."""
        rows = [(group.key.claim, self._attempt, i, *completion_row(completion))
                for group in groups for i, completion in enumerate(group.completions)]
        self._db.executemany(_GENERATE, rows)

    def _advance(self, key: GroupKey, status: str, step: int | None = None, reason: str | None = None) -> None:
        """Moves one group on; refuses to do anything twice or out of turn."""
        where = (key.claim, self._attempt, key.pass_index, key.prompt_id, step)
        if self._db.execute(_ADVANCE[status], (reason, time.time(), *where)).rowcount == 1:
            return
        query = "SELECT step, pass_index, prompt_id, status FROM groups WHERE claim = ? AND attempt = ?"
        held = self._db.execute(query, where[:2]).fetchone() or "nothing"
        at = "" if step is None else f" in step {step}"
        raise LedgerFailed(f"{self.path}: {key} cannot be {status}{at}; attempt {self._attempt} holds {held}")

    def _recall(self, request: GroupRequest, max_staleness: int) -> ScoredGroup | Group | None:
        """The newest scored group; else the newest generated one."""
        generated = None
        for attempt, step in self._db.execute(_FIND, (*wanted(request), self._attempt)).fetchall():
            versions = range(step - max_staleness, request.weight_version + 1)
            rows = self._db.execute(_READ, (request.key.claim, attempt)).fetchall()
            completions = tuple(read_completion(*row[:5]) for row in rows)
            rewards = tuple(read_reward(*row[5:]) for row in rows if row[5] is not None)
            if any(completion.weight_version not in versions for completion in completions):
                continue
            group = Group(request.key, request.prompt, completions)
            if len(rewards) == len(completions):
                return ScoredGroup(group, rewards)
            generated = generated or group
        return generated

    def _check_reaches(self, resumed_step: int) -> None:
        """A ledger that ends before the checkpoint (an old copy, a power cut) would hide a gap."""
        first = self._db.execute("SELECT min(resumed_step) FROM attempts").fetchone()[0]
        if first is None:  # new: its lineage begins at this checkpoint
            return
        lacking = set(range(first, resumed_step)) - {step for (step,) in self._db.execute(_SETTLED_STEPS)}
        if lacking:
            rule = f"a ledger must hold all {resumed_step} train steps of the checkpoint to resume from"
            raise LedgerUnusable(rule, f"{self.path} without step {min(lacking)}", RESTORE)

    @contextmanager
    def _transaction(self, what: str) -> Iterator[None]:
        """All or nothing, also when the process dies in between."""
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                if self._attempt is None and what.startswith("record"):
                    raise LedgerFailed(f"{self.path}: an attempt must begin before events are recorded")
                yield
        except sqlite3.IntegrityError as error:
            raise LedgerFailed(f"{self.path} contradicts this: {what}: {error}") from error
        except sqlite3.Error as error:
            raise LedgerFailed(f"cannot {what} in {self.path}: {error}. Is the disk full or gone?") from error


def _take_lock(path: Path) -> IO[str]:
    """Held while the returned file is open; the kernel lets go of it however the process ends."""
    try:
        lock = path.with_name(path.name + ".lock").open("a+")
    except OSError as error:
        raise LedgerUnusable("a ledger's directory must be writable", str(path), f"{error.strerror}.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        remedy = f"Process {owner} does; wait for it, stop it, or choose another directory."
        raise LedgerLocked("only one run may write a ledger", str(path), remedy) from None
    except OSError as error:
        lock.close()
        raise LedgerUnusable("a ledger must lie where files can be locked", str(path), f"{error.strerror}.") from error
    with suppress(OSError):  # only said to a second run; a full disk is noticed by the ledger itself
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), str(os.getpid()).encode())
    return lock


def _restore(path: Path, backup: Path | None) -> None:
    """Copies a backup into an empty place; what SQLite kept beside the lost file would spoil the new one."""
    with writing(path):
        for name in ("-wal", "-shm"):
            path.with_name(path.name + name).unlink(missing_ok=True)
        if backup:
            partial = path.with_suffix(".partial")
            shutil.copyfile(backup, partial)
            flush(partial)
            partial.replace(path)


def _open(path: Path) -> sqlite3.Connection:
    """Checks before it changes anything: a file that is not a ledger stays as it is."""
    try:
        db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    except sqlite3.Error as error:
        raise _refusal(path, error) from error
    try:
        _prepare(db, path)
    except sqlite3.Error as error:
        db.close()
        raise _refusal(path, error) from error
    except BaseException:
        db.close()
        raise
    return db


def _refusal(path: Path, error: sqlite3.Error) -> BadInput | OutputFailed:
    """What to raise: only a damaged file is to be replaced; a full disk leaves it as good as it was."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without what SQLite adds to say more
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return LedgerUnusable("a ledger must be intact", f"{path}: {error}", RESTORE)
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
        return refused(path, str(error))
    return LedgerUnusable("a ledger must be readable and writable", f"{path}: {error}", "See who else has it open.")


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    db.text_factory = lambda data: data.decode("utf-8", "surrogatepass")
    application, version, num_tables = (
        db.execute(query).fetchone()[0]
        for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
    )
    is_new = (application, version, num_tables) == (0, 0, 0)
    if not is_new and (application, version) != (APPLICATION_ID, VERSION):
        found = f"version {version}" if application == APPLICATION_ID else "another SQLite file"
        remedy = "Use the rlhaiku that wrote it, or move the file away to go on without the history."
        raise LedgerUnusable(f"a ledger must have schema version {VERSION}", f"{path}: {found}", remedy)
    if (problem := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise LedgerUnusable("a ledger must be intact", f"{path}: {problem}", RESTORE)
    if (mode := db.execute("PRAGMA journal_mode = WAL").fetchone()[0]) != "wal":
        raise LedgerUnusable("a ledger must lie on a local disk, for SQLite's WAL", f"{path}: {mode}", "Move it there.")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    if is_new:
        stamp = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION};"
        db.executescript(f"BEGIN; {TABLES} {stamp} COMMIT;")
