"""`kill -9` at any event and between any two writes, again and again: the final weights are the uninterrupted run's."""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhaiku.ledger import Ledger

STEPS, GROUPS_PER_STEP, SAVED = 6, 4, 2
KILLED = -9
ROOT = Path(__file__).parents[2]


class Runner:
    """Talks to `kill_points`."""

    def __init__(self):
        command = [sys.executable, "-m", "tests.launch.kill_points"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __call__(self, directory, moments=None, resume=False, max_staleness=0, dies_at=(), at_event=None):
        request = {"directory": str(directory), "moments": moments, "resume": resume, "max_staleness": max_staleness,
                   "dies_at": list(dies_at), "at_event": at_event}
        self.process.stdin.write(json.dumps(request) + "\n")
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def runner():
    runner = Runner()
    with runner.process:
        yield runner


@pytest.fixture(scope="module", params=[0, 1], ids=["synchronous", "one step ahead"])
def reference(request, runner, tmp_path_factory):
    directory = tmp_path_factory.mktemp("reference")
    assert runner(directory, max_staleness=request.param) == 0
    return request.param, directory


def weights(directory):
    return (directory / "checkpoints" / f"step-{STEPS:06d}" / "weights.txt").read_text()


def metrics(directory):
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/") and not k.endswith("_per_s")} for row in rows]


def files(directory, pattern):
    return {path.name: path.read_text() for path in directory.glob(pattern)}


def said(directory):
    return json.loads((directory / "said.json").read_text())


def assert_same_run(directory, reference):
    assert weights(directory) == weights(reference)
    assert metrics(directory) == metrics(reference)
    for pattern in ("samples.jsonl", "eval/*.json"):
        assert files(directory, pattern) == files(reference, pattern)
    with Ledger(directory / "ledger.sqlite") as ledger:
        lineage = ledger.lineage()
    assert [step.step for step in lineage] == list(range(STEPS))
    settled = [claim for step in lineage for claim in sorted(step.trained + step.dropped)]
    assert settled == list(range(STEPS * GROUPS_PER_STEP)), "every group once, none missing, in order"
    assert [claim for step in lineage for claim in step.dropped] == [6, 13, 20]


def resume_to_the_end(runner, directory, kills, max_staleness):
    """As a person would: `--resume` if the run had begun, and again after every death; returns the deaths."""
    deaths = 0
    for moments in [*kills, None]:
        resume = (directory / "ledger.sqlite").exists()
        status = runner(directory, moments, resume, max_staleness)
        assert status in (0, KILLED)
        deaths += status == KILLED
    assert status == 0
    return deaths


def test_many_moments_are_covered(reference):
    assert said(reference[1])["moments"] > 250


@settings(max_examples=30)
@given(data=st.data())
def test_killed_anywhere_and_resumed_is_the_uninterrupted_run(runner, reference, data):
    max_staleness, uninterrupted = reference
    moments = said(uninterrupted)["moments"]
    kills = data.draw(st.lists(st.integers(0, moments - 1), min_size=1, max_size=3), label="kills")
    with TemporaryDirectory() as name:
        directory = Path(name) / "run"
        deaths = resume_to_the_end(runner, directory, kills, max_staleness)
        assert deaths >= 1
        assert_same_run(directory, uninterrupted)


@pytest.mark.parametrize("kind", [
    "GroupsClaimed", "GroupsGenerated", "GroupsScored", "GroupsDropped", "GroupsTrained",
])
def test_killed_at_an_event_of_each_kind(runner, reference, tmp_path, kind):
    max_staleness, uninterrupted = reference
    directory = tmp_path / "run"
    for number, (nth, is_recorded) in enumerate([(2, False), (1, True)]):
        killed = runner(directory, None, number > 0, max_staleness, at_event=[kind, nth, is_recorded])
        assert killed == KILLED, f"{kind} was not to be had"
    assert runner(directory, None, True, max_staleness) == 0
    assert_same_run(directory, uninterrupted)


def test_a_damaged_checkpoint_is_said_and_the_one_before_is_gone_back_to(runner, reference, tmp_path):
    max_staleness, uninterrupted = reference
    directory = tmp_path / "run"
    assert runner(directory, max_staleness=max_staleness, at_event=["GroupsTrained", 5, False]) == KILLED
    assert (directory / "checkpoints" / "step-000004" / "weights.txt").write_text("damaged")
    assert runner(directory, None, True, max_staleness) == 0
    (problem,) = said(directory)["problems"]
    assert "step-000004" in problem and "weights.txt is missing or was changed" in problem
    assert_same_run(directory, uninterrupted)


def test_finished_rollouts_are_not_drawn_again(runner, reference, tmp_path):
    max_staleness, uninterrupted = reference
    directory = tmp_path / "run"
    drawn_by_all = said(uninterrupted)["drawn"]
    late = said(uninterrupted)["moments"] - 3
    assert runner(directory, late, max_staleness=max_staleness) == KILLED
    for step in (directory / "checkpoints").glob("step-*"):
        step.rename(step.with_name(f"unusable-{step.name}"))  # all of it must come from the ledger
    assert runner(directory, None, True, max_staleness) == 0
    evaluations = 3 * 2
    assert said(directory)["drawn"] <= evaluations + SAVED * GROUPS_PER_STEP < drawn_by_all
    assert_same_run(directory, uninterrupted)


def test_a_trainer_that_dies_is_restarted_from_checkpoint_and_ledger(runner, reference, tmp_path):
    max_staleness, uninterrupted = reference
    assert runner(tmp_path / "run", max_staleness=max_staleness, dies_at=[0, 3, 3, 5]) == 0
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_live_ledger_that_is_gone_comes_back_from_the_checkpoint(runner, reference, tmp_path):
    max_staleness, uninterrupted = reference
    directory = tmp_path / "run"
    assert runner(directory, said(uninterrupted)["moments"] * 2 // 3, max_staleness=max_staleness) == KILLED
    for path in directory.glob("ledger.sqlite*"):
        path.unlink()
    assert runner(directory, None, True, max_staleness) == 0
    assert_same_run(directory, uninterrupted)
