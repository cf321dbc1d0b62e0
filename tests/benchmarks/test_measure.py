"""The arithmetic of the benchmarks, and that none of them has rotted."""

import argparse
import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmarks import measure
from benchmarks.coordinator_overhead import shares, spanned
from benchmarks.gpu.timeline import gaps, medians_by_name, read_spans, union_s
from benchmarks.measure import Paired, Results, begin, interval, paired, read_results, refuse_when_busy
from benchmarks.time_to_reward import curve, first_as_good
from benchmarks.train_step import SGEMM_SIZE, Sgemm

ROOT = Path(__file__).parents[2]


def test_the_ratio_is_the_median_of_paired_times(monkeypatch, capsys):
    walls = iter([(2.0, 1.0), (1.0, 1.0), (1.0, 1.0), (4.0, 1.0), (6.0, 1.0), (1.0, 1.0)])
    monkeypatch.setattr(measure, "timed", lambda work: next(walls))
    result = paired("two ways", lambda: None, lambda: None, pairs=3, goal=3.0)
    assert result.baseline_s == [2.0, 4.0, 6.0] and result.ours_s == [1.0, 1.0, 1.0]
    assert result.ratio == 4.0 and 2.0 <= result.low <= 4.0 <= result.high <= 6.0
    assert "4.00x" in capsys.readouterr().out


def test_sides_take_turns_and_warm_up_is_not_counted():
    calls = []
    result = paired("order", lambda: calls.append("a"), lambda: calls.append("b"), pairs=4)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab" + "ba"
    assert len(result.baseline_s) == len(result.ours_s) == 4


def test_a_busy_machine_is_refused(monkeypatch):
    monkeypatch.setattr(measure, "SETTLE_S", 0.0)
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    with pytest.raises(SystemExit, match=r"load average must not exceed the \d+ cores; it is 99"):
        refuse_when_busy(force=False)
    assert refuse_when_busy(force=True) == 99.0


PAIRED = Paired("x", 2.0, 1.5, 2.5, [2.0], [1.0], [2.0], [1.0], 1.7, "a note")
SHARE = {"name": "y", "kind": "share", "ratio": 0.03, "goal": 0.02, "unit": "s", "samples": {"share": [0.03]},
         "order": "one side"}


def test_a_record_says_everything_needed_to_read_it(tmp_path):
    kept = Results(tmp_path / "latest.jsonl", 0.25)
    kept.add_paired(PAIRED), kept.add_paired(PAIRED)
    first, second = read_results(tmp_path / "latest.jsonl")
    assert first == second.model_copy(update={"date": first.date})  # they may be of two seconds
    assert first.is_met and first.order == "ABBA" and first.load == 0.25
    assert first.samples == {"baseline_s": [2.0], "ours_s": [1.0], "baseline_cpu_s": [2.0], "ours_cpu_s": [1.0]}
    assert first.packages["torch"] and first.device not in ("", "x86_64") and first.cores == os.cpu_count()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert first.commit == "unknown" or head.startswith(first.commit.removesuffix("+"))


def test_records_are_there_as_soon_as_they_are_measured(tmp_path, monkeypatch):
    """A time limit in the second measurement leaves the first."""
    def measurements(smoke):
        yield PAIRED
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["bench", "--force", "--output", str(tmp_path / "out" / "kept.jsonl")])
    with pytest.raises(KeyboardInterrupt):
        measure.standard_main("", measurements)
    assert [record.name for record in read_results(tmp_path / "out" / "kept.jsonl")] == ["x"]


@pytest.mark.parametrize(("change", "met"), [
    ({}, False), ({"goal": 0.05}, True), ({"goal": None}, None), ({"kind": "speed-up"}, True),
    ({"kind": "speed-up", "ratio": 0.01}, False), ({"ratio": None}, False),
], ids=str)
def test_whether_a_goal_is_met_depends_on_the_kind(change, met):
    assert Results(None, 0.0).add(SHARE | change).is_met is met


@pytest.mark.parametrize("change", [{"order": "ABAB"}, {"kind": "?"}, {"more": 1}, {"samples": [1.0]}, {"unit": None}])
def test_a_record_of_another_shape_is_refused(change):
    with pytest.raises(ValidationError):
        Results(None, 0.0).add(SHARE | change)


def test_a_smoke_run_keeps_nothing_unless_told_to(tmp_path):
    options = argparse.Namespace(force=False, smoke=True, output=None)
    assert begin(options).add(SHARE).name == "y" and not (tmp_path / "x.jsonl").exists()
    options.output = tmp_path / "x.jsonl"
    begin(options).add(SHARE)
    assert len(read_results(tmp_path / "x.jsonl")) == 1


def test_every_committed_record_has_the_one_shape():
    for path in (ROOT / "benchmarks" / "results").glob("*.jsonl"):
        assert all(record.load >= 0 and not record.commit.startswith("unknown") for record in read_results(path)), path


def test_the_interval_is_of_the_median():
    assert interval([1.0, 1.0, 1.0]) == (1.0, 1.0)
    low, high = interval([1.0, 2.0, 3.0, 4.0, 100.0])
    assert 1.0 <= low < 3.0 < high <= 100.0


def test_as_many_operations_are_as_many():
    """Of the last product only the columns that are missing."""
    flops = 2.25 * 2 * SGEMM_SIZE**3
    made, counted = Sgemm(flops), []

    class Counting:
        def __init__(self, matrix):
            self.matrix = matrix

        def __matmul__(self, other):
            counted.append(2 * SGEMM_SIZE**2 * other.shape[1])

    assert isinstance(made._a, torch.Tensor)
    made._a = Counting(made._a)
    made()
    assert sum(counted) == flops


@pytest.mark.parametrize(("spans", "covered"), [
    ([], 0), ([(1, 2)], 1), ([(1, 3), (2, 4)], 3), ([(1, 9), (2, 3)], 8), ([(-5, 1), (9, 20)], 2), ([(-2, 20)], 10),
])
def test_spans_are_counted_once_and_within_the_window(spans, covered):
    assert union_s(spans, (0, 10)) == covered
    assert shares([(0, 10)], spans) == [1 - covered / 10]


def test_gaps_say_between_whom():
    work = {"engine": [(1.0, 3.0), (9.0, 9.5)], "trainer": [(4.0, 8.0), (5.0, 6.0)], "reward": [(2.5, 3.5)]}
    assert gaps(work, (0.0, 10.0)) == {
        "step -> engine": 1.0, "reward -> trainer": 0.5, "trainer -> engine": 1.0, "engine -> step": 0.5,
    }
    assert gaps({"engine": []}, (0.0, 2.0)) == {"step -> step": 2.0}
    assert medians_by_name([{"a": 1.0}, {"a": 3.0, "b": 5.0}, {"a": 2.0, "b": 5.0}]) == {"b": 5.0, "a": 2.0}


SPANS = st.lists(st.tuples(st.integers(-5, 15), st.integers(0, 6)).map(lambda pair: (pair[0], sum(pair))), max_size=6)


@given(st.dictionaries(st.sampled_from("abc"), SPANS))
def test_gaps_are_all_that_work_leaves(work):
    union = union_s([span for spans in work.values() for span in spans], (0, 10))
    assert sum(gaps(work, (0, 10)).values()) == 10 - union


def test_the_clock_of_a_run_is_read_at_the_first_evaluation_that_is_good_enough(tmp_path):
    (tmp_path / "eval").mkdir()
    for step, reached in ((0, 0.1), (2, 0.5), (4, 0.4), (6, 0.9)):
        summary = {"summary": {"structure_mean": reached}}
        (tmp_path / "eval" / f"step-{step:06d}.json").write_text(json.dumps(summary))
    points = curve(tmp_path, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert points == [(0, 0.0, 0.1), (2, 6.0, 0.5), (4, 13.0, 0.4), (6, 24.0, 0.9)]
    assert first_as_good(points, 0.45) == 6.0
    assert first_as_good(points, 0.6) == 24.0
    assert first_as_good(points, 0.05) == 6.0, "what was there before the first step took no time"
    assert first_as_good(points, 0.95) is None


def test_coroutines_are_written_down_until_they_end(tmp_path):
    class Worker:
        async def score(self, poems):
            await asyncio.sleep(0.2)
            return poems

    assert asyncio.run(spanned(Worker, ["score"], tmp_path)().score("ab")) == "ab"
    ((began, ended),) = [span for file in tmp_path.glob("Worker-*.spans") for span in read_spans(file)]
    assert ended - began >= 0.19


@pytest.mark.parametrize("name", ["train_step", "weight_sync", "coordinator_overhead"])
def test_benchmarks_run(name, tmp_path):
    """The smallest size; the others share their code."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--smoke", "--output", str(tmp_path / "out.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "goal" in done.stdout
    records = read_results(tmp_path / "out.jsonl")
    assert records and all(record.samples and record.command.startswith("python") for record in records)
