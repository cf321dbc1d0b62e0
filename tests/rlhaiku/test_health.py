"""The alarm on the trainer/engine gap: too large, or grown beyond what the run began with."""

from dataclasses import replace

import pytest

from rlhaiku.health import FIRST_STEPS, GapAlarm, advise, has_grown
from rlhaiku.metrics import METRICS_FILE, RunFiles, step_metrics
from tests.rlhaiku.test_metrics import make_report

GAPS = [0.004, 0.002, 0.003, 0.004, 0.003, 0.0065, 0.003, 0.004, 0.003, 0.004, 0.0059, 0.008, 0.03, 0.003]
EXPECTED = [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 1, 0]


class Rows:
    def __init__(self):
        self.rows = []
        self.evaluated = []

    def step(self, report):
        self.rows.append(step_metrics(report))

    def evaluation(self, state, groups):
        self.evaluated.append(state)


def run(directory, gaps, first_step=1, staleness=0):
    """The rows that a reporter beside the run's files is shown; the files go on from `first_step`."""
    shown = Rows()
    files = RunFiles(directory, 100, first_step - 1)
    alarm = GapAlarm(directory / METRICS_FILE, (files, shown))
    for step, gap in enumerate(gaps, start=first_step):
        report = make_report(step)
        version = report.groups[0].group.completions[0].weight_version + 1 + staleness
        report = replace(report, state=replace(report.state, weight_version=version))
        alarm.step(replace(report, stats=replace(report.stats, logprob_gap=gap)))
    return shown.rows


def test_a_gap_that_grows_is_an_alarm_while_a_steady_one_is_none(tmp_path):
    rows = run(tmp_path, GAPS)
    assert [row["alarm/logprob_gap"] for row in rows] == EXPECTED
    assert "more than 2 times" in advise(rows[11])["gap"].sign
    assert "disagree by 0.030" in advise(rows[12])["gap"].sign and "more than" not in advise(rows[12])["gap"].sign
    assert "gap" not in advise(rows[10])


@pytest.mark.parametrize("reached", [3, 7, 12])
def test_a_resumed_run_measures_against_the_same_first_steps(tmp_path, reached):
    run(tmp_path, [*GAPS[:reached], 0.5, 0.5])  # rows after the checkpoint are made again
    rows = run(tmp_path, GAPS[reached:], first_step=reached + 1)
    assert [row["alarm/logprob_gap"] for row in rows] == EXPECTED[reached:]


def test_doubled_rounding_is_no_alarm_and_what_began_large_is_one_by_the_fixed_bound(tmp_path):
    assert not has_grown(9e-6, [1e-6] * FIRST_STEPS)
    assert has_grown(2e-4, [1e-6] * FIRST_STEPS)
    assert [row["alarm/logprob_gap"] for row in run(tmp_path, [0.05] * 3)] == [1, 1, 1]


def test_with_staleness_the_policys_own_steps_are_no_alarm(tmp_path):
    """One step ahead an honest laptop run reaches 0.035, since its completions are a step older than the weights."""
    rows = run(tmp_path, [0.005] * 6 + [0.035, 0.2], staleness=1)
    assert [row["alarm/logprob_gap"] for row in rows] == [0] * 7 + [1]
    assert "gap" not in advise(rows[6]) and "max_importance_ratio" in advise(rows[7])["gap"].remedy


def test_evaluations_are_passed_on(tmp_path):
    rows = Rows()
    GapAlarm(tmp_path / METRICS_FILE, (rows, rows)).evaluation("state", [])
    assert rows.evaluated == ["state", "state"]
