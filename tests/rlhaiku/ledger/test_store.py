"""The ledger: what goes in comes out to the last bit, nothing is done twice, and a person can read it meanwhile."""

import json
import os
import sqlite3
import subprocess
import sys
from array import array
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhaiku.errors import BadInput, OutputFailed, RunFailed
from rlhaiku.events import GroupsClaimed, GroupsDropped, GroupsGenerated, GroupsScored, GroupsTrained
from rlhaiku.ledger import Ledger, LedgerFailed, LedgerLocked, LedgerUnusable, StepLineage, store
from rlhaiku.ledger import schema as ledger_schema
from rlhaiku.types import Completion, Group, Scored, ScoredGroup, TrainStats, Unscored
from tests.tiny import make_request

GROUPS_PER_STEP = 2
TEXTS = st.text(max_size=60) | st.sampled_from(["\ud83d", "a\x00b", "</script>", "five\nseven\nfive"])
FLOATS = st.floats(allow_nan=False)
COMPLETIONS = st.builds(
    Completion,
    token_ids=st.lists(st.integers(0, 200_000), max_size=6).map(partial(array, "i")),
    logprobs=st.lists(FLOATS, max_size=6).map(partial(array, "d")),
    text=TEXTS,
    finish_reason=st.sampled_from(["stop", "length", "abort"]),
    weight_version=st.just(0),
)
REWARDS = st.builds(Scored, FLOATS, st.dictionaries(st.text(max_size=8), FLOATS, max_size=3))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path):
    with Ledger(path) as opened:
        opened.begin_attempt(0)
        yield opened


def stats(step):
    return TrainStats(step, 0.0, 1.0, 1e-4, 0.0, 0.0, 0.0, 10, 10)


def requests_of(step, version=None):
    version = step if version is None else version
    return tuple(
        make_request(claim, f"topic{claim}", group_size=2, version=version)
        for claim in range(step * GROUPS_PER_STEP, (step + 1) * GROUPS_PER_STEP)
    )


def answered(request, version=None):
    version = request.weight_version if version is None else version
    completions = tuple(
        Completion(
            array("i", [5 + i, 7]), array("d", [-0.1 * i, -2.0]), f"poem {request.key.claim}.{i}", "stop", version
        )
        for i in range(request.group_size)
    )
    return Group(request.key, request.prompt, completions)


def scored(group):
    return ScoredGroup(group, tuple(Scored(0.25 * i, {"structure": 0.5}) for i in range(len(group.completions))))


def play(ledger, step, until="trained", version=None):
    """One step's events, as far as `until`."""
    asked = requests_of(step, version)
    groups = tuple(map(answered, asked))
    for name, event in [
        ("claimed", GroupsClaimed(step, asked)),
        ("generated", GroupsGenerated(groups)),
        ("scored", GroupsScored(tuple(map(scored, groups)))),
        ("trained", GroupsTrained(tuple(g.key for g in groups), stats(step))),
    ]:
        ledger.record(event)
        if name == until:
            break
    return groups


def rows(path, query):
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        return db.execute(query).fetchall()


def test_every_group_goes_through_its_life_and_anybody_can_watch(ledger, path):
    for until in ("claimed", "generated", "scored", "trained"):
        play(ledger, ("claimed", "generated", "scored", "trained").index(until), until)
        assert rows(path, "SELECT DISTINCT status FROM groups ORDER BY claim DESC LIMIT 1") == [(until,)]
    assert ledger.lineage() == [StepLineage(3, 1, (6, 7), ())]
    assert rows(path, "SELECT count(*) FROM completions WHERE total IS NOT NULL") == [(8,)]


def test_the_queries_of_the_documentation_run(ledger, path):
    play(ledger, 0)
    queries = [part.split('"')[0] for part in ledger_schema.__doc__.split('ledger.sqlite "')[1:]]
    assert len(queries) == 3
    assert rows(path, queries[0]) == [(0, "trained", 2)]
    assert rows(path, queries[1])[0] == (0, "topic0", 0.25, "poem 0.1")
    assert rows(path, queries[2]) == []


def test_evaluation_groups_are_left_out(ledger, path):
    request = make_request(0)
    of_eval = answered(replace(request, key=replace(request.key, pass_index=-1)))
    ledger.record(GroupsGenerated((of_eval,)))
    ledger.record(GroupsScored((scored(of_eval),)))
    assert rows(path, "SELECT count(*) FROM groups") == [(0,)]


@pytest.mark.parametrize("again", ["claimed", "generated", "scored", "trained"])
def test_nothing_happens_twice(ledger, again):
    play(ledger, 0)
    asked, groups = requests_of(0), tuple(map(answered, requests_of(0)))
    event = {
        "claimed": GroupsClaimed(0, asked),
        "generated": GroupsGenerated(groups),
        "scored": GroupsScored(tuple(map(scored, groups))),
        "trained": GroupsTrained(tuple(g.key for g in groups), stats(0)),
    }[again]
    before = ledger.lineage()
    with pytest.raises(LedgerFailed):
        ledger.record(event)
    assert ledger.lineage() == before


def test_an_event_is_recorded_whole_or_not_at_all(ledger, path):
    asked = requests_of(0)
    ledger.record(GroupsClaimed(0, asked))
    stranger = answered(make_request(99))
    with pytest.raises(LedgerFailed, match="cannot be generated"):
        ledger.record(GroupsGenerated((answered(asked[0]), stranger)))
    assert rows(path, "SELECT DISTINCT status FROM groups") == [("claimed",)]
    assert rows(path, "SELECT count(*) FROM completions") == [(0,)]


def test_dropped_groups_keep_their_reason(ledger, path):
    groups = play(ledger, 0, "scored")
    ledger.record(GroupsDropped(0, {groups[1].key: "1 of 2 scored"}))
    ledger.record(GroupsTrained((groups[0].key,), stats(0)))
    assert ledger.lineage() == [StepLineage(0, 1, (0,), (1,))]
    assert rows(path, "SELECT reason FROM groups WHERE status = 'dropped'") == [("1 of 2 scored",)]


@given(st.lists(st.tuples(COMPLETIONS, REWARDS), min_size=1, max_size=3))
def test_what_is_recalled_is_what_was_recorded(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    request = make_request(0, group_size=len(pairs))
    original = ScoredGroup(
        Group(request.key, request.prompt, tuple(completion for completion, _ in pairs)),
        tuple(reward for _, reward in pairs),
    )
    with Ledger(path) as ledger:
        ledger.begin_attempt(0)
        ledger.record(GroupsClaimed(0, (request,)))
        ledger.record(GroupsScored((original,)))
        ledger.begin_attempt(0)
        (back,) = ledger.recall([request]).scored
    assert back == original
    assert [str(r.total) for r in back.rewards] == [str(r.total) for r in original.rewards], "-0.0 is not 0.0"


def test_a_new_attempt_rolls_back_and_recalls(path):
    with Ledger(path) as ledger:
        assert ledger.begin_attempt(0) == 1
        for step in range(3):
            play(ledger, step)
        play(ledger, 3, "scored")
        play(ledger, 4, "generated")
        play(ledger, 5, "claimed")
    with Ledger(path) as ledger:
        assert ledger.begin_attempt(2) == 2
        assert [lineage.step for lineage in ledger.lineage()] == [0, 1]
        for step, kind in ((2, "scored"), (3, "scored"), (4, "generated"), (5, "missing")):
            recalled = ledger.recall(requests_of(step))
            assert {name: len(getattr(recalled, name)) for name in ("scored", "generated", "missing")} == {
                "scored": 0, "generated": 0, "missing": 0} | {kind: 2}
        play(ledger, 2)
        assert ledger.lineage()[-1] == StepLineage(2, 2, (4, 5), ())
    assert rows(path, "SELECT count(*) FROM groups WHERE rolled_back_by = 2") == [(8,)]


def test_only_the_same_question_is_recalled(path):
    with Ledger(path) as ledger:
        ledger.begin_attempt(0, "settings")
        play(ledger, 0, "scored")
        ledger.begin_attempt(0, "settings")
        (request, _) = requests_of(0)
        assert ledger.recall([request]).scored
        changed = [
            replace(request, group_size=3),
            replace(request, sampling=replace(request.sampling, temperature=0.5)),
            replace(request, sampling=replace(request.sampling, max_tokens=99)),
            replace(request, prompt=replace(request.prompt, reference="another poem")),
            replace(request, key=replace(request.key, pass_index=1)),
        ]
        assert ledger.recall(changed).missing == tuple(changed)
        ledger.begin_attempt(0, "other settings")
        assert ledger.recall([request]).missing == (request,)


def test_a_missing_reward_is_asked_for_again(ledger):
    asked = requests_of(0)
    ledger.record(GroupsClaimed(0, asked))
    group = answered(asked[0])
    ledger.record(GroupsScored((ScoredGroup(group, (Scored(1.0), Unscored("judge away \ud83d"))),)))
    ledger.begin_attempt(0)
    assert ledger.recall(asked[:1]).generated == (group,)


@pytest.mark.parametrize(("made_by", "max_staleness", "found"), [
    (3, 0, True), (2, 0, False), (2, 1, True), (1, 1, False),
])
def test_older_weights_are_recalled_only_as_far_as_staleness_allows(ledger, made_by, max_staleness, found):
    play(ledger, 3, "scored", version=made_by)
    ledger.begin_attempt(0)
    recalled = ledger.recall(requests_of(3, version=3), max_staleness)
    assert bool(recalled.scored) is found
    assert len(recalled.scored) + len(recalled.missing) == 2


def test_pruned_steps_keep_their_summary_and_cannot_be_recalled(ledger, path):
    for step in range(3):
        play(ledger, step)
    ledger.prune(before_step=2)
    assert rows(path, "SELECT count(*) FROM completions WHERE text IS NULL AND token_ids IS NULL") == [(8,)]
    assert rows(path, "SELECT count(*) FROM completions WHERE total IS NOT NULL AND num_tokens = 2") == [(12,)]
    ledger.begin_attempt(0)
    assert len(ledger.recall(requests_of(1)).missing) == 2
    assert len(ledger.recall(requests_of(2)).scored) == 2


def test_a_backup_is_one_whole_file_and_a_ledger_itself(ledger, tmp_path):
    play(ledger, 0)
    copy = tmp_path / "copy" / "ledger.sqlite"
    copy.parent.mkdir()
    ledger.backup(copy)
    play(ledger, 1)
    assert [p.name for p in copy.parent.iterdir()] == ["ledger.sqlite"]
    with Ledger(copy) as restored:
        assert restored.lineage() == [StepLineage(0, 1, (0, 1), ())]
        assert restored.begin_attempt(1) == 2


def test_a_ledger_that_ends_before_the_checkpoint_is_refused(ledger, path):
    play(ledger, 0)
    with pytest.raises(LedgerUnusable, match=r"all 3 train steps[\s\S]*without step 1"):
        ledger.begin_attempt(3)


def test_a_second_writer_is_told_who_the_first_is(ledger, path):
    code = "import sys; from rlhaiku.ledger import Ledger; from pathlib import Path; Ledger(Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"Process {os.getpid()} does" in done.stderr
    with pytest.raises(LedgerLocked):
        Ledger(path)


def test_a_killed_writer_leaves_no_lock_and_loses_no_event(path):
    code = """
import os, sys
from pathlib import Path
from rlhaiku.ledger import Ledger
from tests.rlhaiku.ledger.test_store import play
ledger = Ledger(Path(sys.argv[1]))
ledger.begin_attempt(0)
play(ledger, 0)
play(ledger, 1, "generated")
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=os.getcwd(), check=False)
    assert done.returncode == -9
    with Ledger(path) as ledger:
        assert ledger.lineage() == [StepLineage(0, 1, (0, 1), ())]
        ledger.begin_attempt(1)
        assert len(ledger.recall(requests_of(1)).generated) == 2


@pytest.mark.parametrize("spoil", ["text", "cut", "middle", "another database", "newer"])
def test_what_is_no_ledger_is_refused_and_left_as_it_is(path, spoil):
    if spoil == "text":
        path.write_text("dear diary, " * 1000)
    elif spoil == "another database":
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE notes (text)")
    else:
        with Ledger(path) as ledger:
            ledger.begin_attempt(0)
            for step in range(30):
                play(ledger, step)
        data = path.read_bytes()
        if spoil == "cut":
            path.write_bytes(data[: len(data) // 2])
        elif spoil == "middle":
            path.write_bytes(data[:8192] + bytes(len(data) - 12288) + data[-4096:])
        else:
            with sqlite3.connect(path) as db:
                db.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(LedgerUnusable) as refused:
        Ledger(path)
    assert isinstance(refused.value, BadInput) and str(path) in str(refused.value)
    assert path.read_bytes() == before


def test_a_full_disk_is_a_failed_run_with_the_reason(path):
    code = """
import json, resource, sys
from pathlib import Path
from rlhaiku.ledger import Ledger, LedgerFailed
from tests.rlhaiku.ledger.test_store import play
ledger = Ledger(Path(sys.argv[1]))
ledger.begin_attempt(0)
play(ledger, 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    for step in range(1, 2000):
        play(ledger, step)
except LedgerFailed as error:
    print(json.dumps([step, str(error)]))
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    failed_step, said = json.loads(done.stdout)
    assert "Is the disk full or gone?" in said
    assert issubclass(LedgerFailed, RunFailed)
    with Ledger(path) as ledger:
        assert [lineage.step for lineage in ledger.lineage()] in (
            list(range(failed_step)), list(range(failed_step + 1))
        ), "what was recorded before is intact"


@pytest.mark.parametrize("code", ["SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_CANTOPEN", "SQLITE_READONLY"])
def test_a_disk_that_refuses_is_no_damage(path, monkeypatch, code):
    """Nobody is told to move a good ledger away because the disk is full."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = getattr(sqlite3, code)

    def refuse(db, path):
        raise error

    monkeypatch.setattr(store, "_prepare", refuse)
    with pytest.raises(OutputFailed, match=r"ledger\.sqlite: .*full[\s\S]*make room[\s\S]*--resume"):
        Ledger(path)


def test_a_full_disk_does_not_keep_the_lock_from_being_taken(path, monkeypatch):
    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    Ledger(path).close()


def test_a_backup_comes_back_without_what_belonged_to_the_lost_file(path, tmp_path):
    with Ledger(path) as ledger:
        ledger.begin_attempt(0)
        play(ledger, 0)
        ledger.backup(tmp_path / "copy.sqlite")
        for step in range(1, 30):
            play(ledger, step)
        beside = {name: path.with_name(path.name + name).read_bytes() for name in ("-wal", "-shm")}
    path.unlink()
    for name, data in beside.items():
        path.with_name(path.name + name).write_bytes(data)
    with Ledger(path, tmp_path / "copy.sqlite") as restored:
        assert restored.lineage() == [StepLineage(0, 1, (0, 1), ())]
        with pytest.raises(LedgerLocked):
            Ledger(path, tmp_path / "copy.sqlite")


def test_recording_before_an_attempt_is_a_mistake(path):
    with Ledger(path) as ledger, pytest.raises(LedgerFailed, match="an attempt must begin"):
        play(ledger, 0)
