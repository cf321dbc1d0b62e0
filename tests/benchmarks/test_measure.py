"""The arithmetic of the benchmarks, and that none of them has rotted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import measure
from benchmarks.gpu.timeline import union_s
from benchmarks.measure import Paired, paired, refuse_when_busy, write_results
from benchmarks.time_to_reward import curve, first_as_good

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
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    with pytest.raises(SystemExit, match=r"load average must not exceed the \d+ cores; it is 99"):
        refuse_when_busy(force=False)
    assert refuse_when_busy(force=True) == 99.0


def test_a_result_line_says_everything_needed_to_read_it(tmp_path):
    result = Paired("x", 2.0, 1.5, 2.5, [2.0], [1.0], [2.0], [1.0], 1.7, "a note")
    write_results(tmp_path / "latest.jsonl", [result, result], 0.25)
    first, second = (json.loads(line) for line in (tmp_path / "latest.jsonl").read_text().splitlines())
    assert first == second
    assert {"command", "date", "device", "cores", "python", "packages", "load_before", "order", "name", "ratio", "low",
            "high", "baseline_s", "ours_s", "goal", "note"} <= first.keys()
    assert first["packages"]["torch"] and first["load_before"] == 0.25


@pytest.mark.parametrize(("spans", "covered"), [
    ([], 0), ([(1, 2)], 1), ([(1, 3), (2, 4)], 3), ([(1, 9), (2, 3)], 8), ([(-5, 1), (9, 20)], 2), ([(-2, 20)], 10),
])
def test_spans_are_counted_once_and_within_the_window(spans, covered):
    assert union_s(spans, (0, 10)) == covered


def test_the_clock_of_a_run_is_read_at_the_first_evaluation_that_is_good_enough(tmp_path):
    (tmp_path / "eval").mkdir()
    for step, reached in ((0, 0.1), (2, 0.5), (4, 0.4), (6, 0.9)):
        summary = {"summary": {"structure_mean": reached}}
        (tmp_path / "eval" / f"step-{step:06d}.json").write_text(json.dumps(summary))
    points = curve(tmp_path, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert points == [(0, 0.0, 0.1), (2, 3.0, 0.5), (4, 10.0, 0.4), (6, 21.0, 0.9)]
    assert first_as_good(points, 0.45) == 3.0
    assert first_as_good(points, 0.6) == 21.0
    assert first_as_good(points, 0.95) is None


@pytest.mark.parametrize("name", ["train_step", "weight_sync", "coordinator_overhead"])
def test_benchmarks_run(name, tmp_path):
    """The smallest size; the others share their code."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--smoke", "--output", str(tmp_path / "out.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "goal" in done.stdout
    assert not (tmp_path / "out.jsonl").exists(), "a smoke run measures nothing"
