'''The tables of `ledger.sqlite`, for `store.py` and for people. `sqlite3 RUN/ledger.sqlite .schema` prints them.

    attempts 1 ──< groups 1 ──< completions
    one per start      one per claim     one per
    or resume          and attempt       sampled answer

A claim that was rolled back by a resume has one row per attempt; the rows with `rolled_back_by IS NULL` are the lineage
of the final weights, and in it every claim is there once (an index forbids a second one). Reading never disturbs the
run: open it while training goes on.

How far is each step?

    sqlite3 -readonly RUN/ledger.sqlite "SELECT step, status, count(*) FROM groups WHERE rolled_back_by IS NULL
      GROUP BY step, status ORDER BY step DESC LIMIT 10"

The best poems so far:

    sqlite3 -readonly RUN/ledger.sqlite "SELECT step, topic, round(total, 2), text FROM completions
      JOIN groups USING (claim, attempt) WHERE rolled_back_by IS NULL AND text IS NOT NULL ORDER BY total DESC LIMIT 5"

What was not scored or not trained, and why?

    sqlite3 -readonly RUN/ledger.sqlite "SELECT step, prompt_id, status, reason, group_concat(unscored, '; ') AS why
      FROM groups JOIN completions USING (claim, attempt) WHERE unscored IS NOT NULL OR reason IS NOT NULL
      GROUP BY claim, attempt"
'''

APPLICATION_ID = 0x48414B55
"""`HAKU`: tells a ledger from any other SQLite file."""

LEDGER_FILE = "ledger.sqlite"
"""Its name in a run directory, and beside each checkpoint."""

VERSION = 1
"""Goes up with every change of `TABLES`."""

TABLES = """
CREATE TABLE attempts (
    attempt INTEGER PRIMARY KEY,            -- 1 is the first start, every resume adds one
    resumed_step INTEGER NOT NULL,          -- train steps its checkpoint had done; 0 for a start from nothing
    started_at REAL NOT NULL,               -- Unix seconds: datetime(started_at, 'unixepoch')
    fingerprint TEXT NOT NULL               -- of the settings that decide the weights; only equal ones are recalled
);
CREATE TABLE groups (
    claim INTEGER NOT NULL,                 -- 0-based position in the run's claim order
    attempt INTEGER NOT NULL,               -- who claimed it
    step INTEGER NOT NULL,                  -- 0-based train step it was claimed for
    pass_index INTEGER NOT NULL,            -- pass over the training prompts
    prompt_id TEXT NOT NULL,
    topic TEXT NOT NULL,
    prompt_sha256 TEXT NOT NULL,            -- of the whole prompt: a changed data set is not recalled
    group_size INTEGER NOT NULL,
    temperature REAL NOT NULL,
    max_tokens INTEGER NOT NULL,
    weight_version INTEGER NOT NULL,        -- the weights it was asked to be drawn with
    status TEXT NOT NULL CHECK (status IN ('claimed', 'generated', 'scored', 'trained', 'dropped')),
    reason TEXT,                            -- why it was dropped
    updated_at REAL NOT NULL,               -- Unix seconds of the last change of status
    rolled_back_by INTEGER,                 -- the attempt that went back before it; NULL: in the lineage
    pruned INTEGER NOT NULL DEFAULT 0,      -- 1: token ids, logprobs and texts are gone
    PRIMARY KEY (claim, attempt)
) WITHOUT ROWID;
CREATE UNIQUE INDEX lineage ON groups (claim) WHERE rolled_back_by IS NULL;
CREATE INDEX unpruned ON groups (step) WHERE pruned = 0;
CREATE TABLE completions (
    claim INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    completion INTEGER NOT NULL,            -- index in the group, from 0
    weight_version INTEGER NOT NULL,        -- the weights that made it
    finish_reason TEXT NOT NULL,            -- stop, length or abort
    num_tokens INTEGER NOT NULL,
    text TEXT,
    token_ids BLOB,                         -- int32, little endian
    logprobs BLOB,                          -- float64, little endian
    total REAL,                             -- the reward, to read, without repeat penalty; NULL until scored
    total_bits BLOB,                        -- the same as float64, little endian: SQLite's REAL knows no -0.0 or NaN
    components TEXT,                        -- the parts of the reward, JSON
    unscored TEXT,                          -- why there is no reward
    PRIMARY KEY (claim, attempt, completion)
) WITHOUT ROWID;
"""
