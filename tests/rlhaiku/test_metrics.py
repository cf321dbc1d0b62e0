import errno
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from rlhaiku.batching import make_batch
from rlhaiku.checkpoints import RunState
from rlhaiku.config import AlgorithmConfig
from rlhaiku.errors import OutputFailed
from rlhaiku.metric_names import METRICS, describe_metric
from rlhaiku.metrics import RunFiles, StepReport, evaluation_metrics, step_metrics
from rlhaiku.types import Scored, SyncReport, TrainStats, Unscored
from tests.tiny import make_scored


def make_report(step=3):
    groups = (
        make_scored(0, [2.0, 0.0, Unscored("judge down")]),
        make_scored(1, [Scored(0.5, {"structure": 0.25}), Unscored("judge down")]),
    )
    stats = TrainStats(step - 1, 0.1, 1.0, 1e-4, 0.0, 0.001, 0.0, 20, 50)
    sync = SyncReport(step, 1, 400, 0.5)
    seconds = {"rollout": 2.0, "train": 1}
    made = make_batch(step - 1, groups, AlgorithmConfig(), temperature=1.0)
    return StepReport(RunState(step, step), groups, made, stats, sync, seconds, {"judge/requests": 7})


def test_metrics_of_a_step():
    row = step_metrics(make_report())
    assert row["step"] == row["weight_version"] == 3
    assert row["reward/mean"] == pytest.approx(2.5 / 3)
    assert row["reward/structure"] == 0.25
    assert row["reward/std"] == pytest.approx(math.sqrt(((2 - 2.5 / 3) ** 2 + (2.5 / 3) ** 2 + (1 / 3) ** 2) / 3))
    assert row["reward_se/mean"] == pytest.approx(0.25)  # group means 1 and 0.5: deviation 0.3536, over root 2
    assert "reward_se/structure" not in row  # one group has it: no deviation
    assert row["reward/unscored"] == 2
    assert row["group/zero_variance_share"] == 0.5
    assert row["group/dropped"] == 1
    assert row["completion/truncated_share"] == 0.0
    assert row["completion/distinct_2"] == pytest.approx(4 / 6)  # of "poem 0 by 0" and "poem 0 by 1"
    assert row["rollout/staleness_mean"] == 2
    tokens = sum(len(c.token_ids) for g in make_report().groups for c in g.group.completions)
    assert row["rollout/tokens_per_s"] == tokens / 2.0
    assert row["train/grad_norm"] == 1.0
    assert row["time/train_s"] == 1
    assert row["judge/requests"] == 7


def test_every_name_is_in_the_table_and_the_table_holds_nothing_else():
    state = RunState(3, 3)
    report = replace(make_report(), alarms={"alarm/logprob_gap": 0.0})
    rows = step_metrics(report), evaluation_metrics(state, report.groups)
    names = {name for row in rows for name in row} | {"time/sync_s"}
    documented = {name if name in METRICS else name.partition("/")[0] + "/*" for name in names}
    assert documented == METRICS.keys()
    assert all(describe_metric(name) for name in names)
    with pytest.raises(KeyError):
        describe_metric("rollout/new")


def test_an_evaluation_that_nobody_could_score_has_no_reward():
    row = evaluation_metrics(RunState(0, 0), [make_scored(0, [Unscored("judge down")])])
    assert "eval/reward" not in row
    assert row["eval/strict_575"] == 0.0


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_files_of_a_run_and_their_resume(tmp_path):
    files = RunFiles(tmp_path, samples_interval=2)
    for step in (1, 2, 3, 4):
        files.step(make_report(step))
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    samples = rows(tmp_path / "samples.jsonl")
    assert [row["step"] for row in samples] == [2] * 5 + [4] * 5
    assert [(row["group"], row["index"]) for row in samples[:5]] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert [row.get("advantage") for row in samples[:3]] == [
        pytest.approx(0.7071, abs=1e-4), pytest.approx(-0.7071, abs=1e-4), None,
    ]
    assert "advantage" not in samples[3]  # its group was dropped
    assert samples[3]["components"] == {"structure": 0.25}
    assert samples[4]["unscored"] == "judge down"
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "cut off by a cra')
    resumed = RunFiles(tmp_path, samples_interval=2, resumed_step=2)
    resumed.step(make_report(3))
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert {row["step"] for row in rows(tmp_path / "samples.jsonl")} == {2}


@pytest.mark.parametrize("tail", [
    b'{"step": 3, "cut o', b"\x00\x00\xff\x00\n", b"\x00\x00\x00\n", b"17\n", b"[]\n", b"{}\n",
], ids=["cut off", "no text", "zeros", "a number", "a list", "no step"])
def test_what_a_crash_left_at_the_end_is_dropped(tmp_path, tail):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n' + tail)
    RunFiles(tmp_path, 1, resumed_step=2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_a_full_disk_leaves_the_rows_as_they_were(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputFailed, match="No space left on device"):
        RunFiles(tmp_path, 1, resumed_step=1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_comparison_reads_the_files_back(tmp_path):
    files = RunFiles(tmp_path, samples_interval=2)
    files.evaluation(RunState(0, 0), [make_scored(0, [0.0, 1.0])])
    files.evaluation(RunState(8, 8), [make_scored(0, [0.0, 1.0])])
    comparison = files.compare(last_step=8)
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    assert summary == comparison.to_dict()
    assert summary["base"] == summary["trained"]
    assert (summary["base"]["prompts"], summary["base"]["completions"]) == (1, 2)
