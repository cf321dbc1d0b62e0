"""The benchmark of the whole cluster layout: rehearsed with fakes of the GPU classes, and what it computes."""

import json
import os
import subprocess
import sys
import time
from array import array
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer

from benchmarks import eight_gpu
from benchmarks.eight_gpu import LAYOUTS, Bench, fitting, parse, rehearsal, supervise
from benchmarks.gpu import inside, memory, shapes
from benchmarks.gpu.ceilings import ceilings
from benchmarks.gpu.goals import goals
from benchmarks.gpu.layout_run import LayoutRun, Striker, medians, step_row, sync_row
from benchmarks.gpu.memory import compare_memory, peaks, used_gb
from benchmarks.gpu.observe import observed, read_phases
from benchmarks.models import VOCABULARY, bundled
from launch.plan import GpuPlan
from rlhaiku.errors import ActorDied
from rlhaiku.types import Completion, Scored
from tests.launch.test_slime_run import FAKES, pretend_gpus

ROOT = Path(__file__).parents[2]
LIMIT_S = 240
NAMES = {
    "seconds per step", "seconds per step, stretch", "seconds of a weight sync, SGLang by persistent handles",
    "seconds of a weight sync, our engine", "seconds of a weight sync, slime's primitive", "idle share of the cards",
    "idle share of the cards, one step ahead (our engine; SGLang's hold one version)", "coordinator's share of a step",
    "logprob gap", "memory against the plan, relative error",
    "weights equal on all engines after every sync, and new each time", "nothing lost when an engine is killed",
}


def test_a_rehearsal_measures_every_step_and_loses_nothing_when_an_engine_is_killed(tmp_path):
    (tmp_path / "facts").mkdir()
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{FAKES}", "SLIME_OFFLINE": str(tmp_path / "facts"),
        "PATH": f"{pretend_gpus(tmp_path / 'bin', 2)}:{os.environ['PATH']}",
    }
    command = [sys.executable, "-m", "benchmarks.eight_gpu", "--cpu", "--steps", "3", "--deadline", str(LIMIT_S),
               "--parts", "colocated/megatron,kill", "--output", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S + 60)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["circumstances"]["cpu_rehearsal"] and document["untaken"] == {"ceilings": "not asked for"}
    (row,) = document["layouts"]
    assert (row["name"], row["status"]) == ("colocated/megatron", "done")
    assert [step["kind"] for step in row["steps"]] == ["steady"] * 3 + ["profiled"] * 3 + ["killed"] * 3
    for step in row["steps"]:
        assert all(step[f"{phase}_s"] > 0 for phase in ("rollout", "reward", "train", "push", "verify"))
        assert 0 < step["coordinator_s"] < step["wall_s"] and step["samples"] == 16
    assert [step["weight_version"] for step in row["steps"]] == [*range(1, 10)]
    assert row["median"]["checksums_differ"] and row["sync"]["way"] == "slime"
    assert len(row["profile"]["busy_s"]) == 4 and all(busy > 0 for busy in row["profile"]["busy_s"].values())
    assert row["memory"] is row["idle"] is None and row["untaken"] == dict.fromkeys(("memory", "idle"),
                                                                                   "there is no card")
    assert row["kill"]["struck"] and row["kill"]["lineage_complete"] and row["kill"]["ranks_kept"]
    assert len(row["kill"]["died"]) == 1 and row["kill"]["recovered_s"] > 0 and row["kill"]["groups"] == 36
    by_name = {goal["name"]: goal for goal in document["goals"]}
    assert by_name.keys() == NAMES
    assert by_name["nothing lost when an engine is killed"]["met"] is True
    assert by_name["seconds per step"]["met"] is None and "2 GPUs for 8" in by_name["seconds per step"]["reason"]


def options(tmp_path, *arguments, began=None):
    made = parse(["--cpu", "--gpus", "2", "--output", str(tmp_path / "out.json"), *arguments])
    made.began, made.scratch = time.time() if began is None else began, tmp_path / "scratch"
    return made


def test_what_has_no_time_left_is_skipped_and_says_so(tmp_path):
    Bench(options(tmp_path, "--deadline", "5", "--parts", "split/ours,split/ahead")).run()
    document = json.loads((tmp_path / "out.json").read_text())
    assert [(row["name"], row["status"]) for row in document["layouts"]] == [
        ("split/ours", "skipped"), ("split/ahead", "skipped"),
    ]
    assert all(row["why"].startswith("time:") for row in document["layouts"])
    assert all(goal["value"] is None and goal["met"] is None and goal["reason"] for goal in document["goals"])


def test_a_layout_that_fails_is_written_down_and_the_next_begins(tmp_path, monkeypatch):
    def measure(self, config, directory, used, row):
        if row["name"] == "split/ours":
            raise RuntimeError("no luck")

    monkeypatch.setattr(Bench, "_measure", measure)
    monkeypatch.setattr(eight_gpu, "local_ray", lambda slots, gpus: nullcontext())
    Bench(options(tmp_path, "--parts", "split/ours,split/ahead")).run()
    rows = json.loads((tmp_path / "out.json").read_text())["layouts"]
    assert [row["status"] for row in rows] == ["failed", "done"] and rows[0]["why"] == "RuntimeError: no luck"


def test_what_cannot_be_taken_costs_nothing_that_comes_after_it(tmp_path):
    bench, row = Bench(options(tmp_path, "--parts", "split/ours")), {"untaken": {}}
    run = LayoutRun.__new__(LayoutRun)
    run._row = row

    def fail(error):
        raise error

    bench._if_possible(run, "memory", lambda: fail(OSError("HTTP 500")))
    assert row == {"memory": None, "untaken": {"memory": "OSError: HTTP 500"}}
    with pytest.raises(ActorDied):  # the layout itself is broken then
        bench._if_possible(run, "idle", lambda: fail(ActorDied("gone")))


def test_a_layout_ends_at_the_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr(Bench, "_measure", lambda *_: time.sleep(60))
    monkeypatch.setattr(eight_gpu, "local_ray", lambda slots, gpus: nullcontext())
    monkeypatch.setattr(eight_gpu, "GRACE_S", 0.0)
    monkeypatch.setattr(eight_gpu, "REHEARSAL_S", 0.0)
    started = time.monotonic()
    Bench(options(tmp_path, "--deadline", "1", "--parts", "split/ours")).run()
    (row,) = json.loads((tmp_path / "out.json").read_text())["layouts"]
    assert (row["status"], row["why"]) == ("failed", "time: it did not end before the deadline")
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(("code", "why"), [("import time; time.sleep(60)", "ended by force"),
                                           ("raise SystemExit(3)", "exit status 3")])
def test_a_benchmark_that_is_ended_leaves_a_whole_file(tmp_path, code, why):
    output = tmp_path / "out.json"
    output.write_text(json.dumps({"layouts": [{"name": "a", "status": "done"}, {"name": "b", "status": "running"}]}))
    assert not supervise([sys.executable, "-c", code], os.environ, time.time() + 2, output)
    rows = json.loads(output.read_text())["layouts"]
    assert rows == [{"name": "a", "status": "done"}, {"name": "b", "status": "failed", "why": why}]


def test_a_benchmark_that_ends_before_it_has_begun_has_not_passed(tmp_path):
    assert not supervise([sys.executable, "-c", ""], os.environ, time.time() + 30, tmp_path / "none.json")


@pytest.mark.parametrize(("gpus", "largest", "name", "expected"), [
    (8, "4B", "colocated/megatron", ("4B", 8, 8, 2048)), (8, "4B", "split/megatron", ("4B", 4, 8, 4096)),
    (8, "4B", "split/ahead", ("4B", 4, 8, None)), (2, "4B", "split/ours", ("1.7B", 1, 2, None)),
    (2, "0.6B", "split/megatron", ("0.6B", 1, 2, None)),
])
def test_the_largest_model_and_micro_batch_that_the_plan_lets_pass(monkeypatch, gpus, largest, name, expected):
    monkeypatch.setattr(eight_gpu, "gpu_memory_bytes", lambda: 85e9)
    config, size = fitting(LAYOUTS[name], gpus, largest, steps=18)
    assert (size, config.rollout.num_engines, config.cluster.gpus_per_node) == expected[:3]
    assert expected[3] in (None, config.trainer.micro_batch_tokens)
    assert config.rollout.groups_per_step * config.rollout.group_size == 1024 and config.num_steps == 18
    assert config.rollout.max_staleness == (name == "split/ahead") and config.trainer.weight_decay == 0.0


def test_what_fits_no_card_says_why(monkeypatch):
    monkeypatch.setattr(eight_gpu, "gpu_memory_bytes", lambda: 85e9)
    monkeypatch.setattr(eight_gpu, "MICRO_BATCHES", (10**7,))
    config, why = fitting(LAYOUTS["colocated/ours"], 8, "0.6B", steps=18)
    assert config is None and "micro_batch_tokens" in why


def test_rehearsals_have_the_layout_in_small():
    split, ours = (rehearsal(LAYOUTS[name], 4, 9) for name in ("split/megatron", "split/ahead"))
    assert (split.rollout.num_engines, split.cluster.gpus_per_node, split.cluster.colocate) == (2, 4, False)
    assert (ours.cluster.gpus_per_node, ours.rollout.max_staleness, ours.trainer.backend) == (0, 1, "torch")


def test_persistent_handles_are_a_layout(tmp_path):
    config, _ = Bench(options(tmp_path)).settings_of("colocated/persistent")
    assert config.cluster.weight_path == "slots"


PHASES = {"rollout": [(10.0, 12.0), (10.5, 12.5)], "reward": [(12.5, 12.6)], "train": [(13.0, 17.0), (13.0, 16.0)],
          "push": [(17.0, 17.5)], "load": [], "verify": [(17.4, 18.0)]}


def report(step=1, checksum=5):
    completion = Completion(array("i", [5, 6, 7]), array("d", [-1.0] * 3), "a", "stop", 0)
    group = SimpleNamespace(completions=(completion, completion))
    return SimpleNamespace(
        state=SimpleNamespace(step=step, weight_version=step), sync=SimpleNamespace(seconds=1.0, checksum=checksum,
                                                                                    num_bytes=8 * 10**9),
        groups=(SimpleNamespace(group=group, rewards=(Scored(1.0), Scored(0.0))),),
        stats=SimpleNamespace(num_forward_tokens=2000, logprob_gap=0.01, grad_norm=2.0),
    )


def test_a_step_is_divided_among_those_who_worked_in_it():
    row = step_row("steady", (10.0, 20.0), PHASES, report())
    assert {name: row[f"{name}_s"] for name in PHASES} == pytest.approx(
        {"rollout": 2.5, "reward": 0.1, "train": 4.0, "push": 0.5, "load": 0.0, "verify": 0.6}
    )
    assert row["coordinator_s"] == pytest.approx(2.4) and row["wall_s"] == 10.0
    assert row["gaps"] == pytest.approx({"reward -> train": 0.4, "verify -> step": 2.0})
    assert (row["samples"], row["tokens"], row["reward_mean"]) == (2, 6, 0.5)


def test_medians_leave_the_first_steps_out_and_know_the_ceilings():
    ends = (99.0, 99.0, 20.0, 22.0, 21.0)
    rows = [step_row("steady", (10.0, end), PHASES, report(step, step)) for step, end in enumerate(ends)]
    found = medians(rows, 2e9, 4, {"matmul_tflops": [1.0, 0.5]})
    assert found["wall_s"] == 11.0 and found["samples_per_s"] == pytest.approx(2 / 11)
    assert found["train_tflops"] == pytest.approx(0.25) and found["train_over_matmul"] == pytest.approx(0.5)
    assert found["checksums_differ"] and found["engines_equal"]
    assert medians(rows, 2e9, 4, None)["train_over_matmul"] is None
    same = [*rows, rows[-1]]
    assert not medians(same, 2e9, 4, None)["checksums_differ"]


def test_a_sync_is_held_against_the_link_it_uses():
    rows = [step_row("steady", (10.0, 20.0), PHASES, report())] * 3
    line = {"copy_gbs": [1600.0, 2000.0], "broadcast_gbs": 400.0}
    colocated, split = (sync_row(rows, "slime", line, is_colocated) for is_colocated in (True, False))
    assert (colocated["ceiling"], colocated["over_ceiling"]) == ("copy", pytest.approx(100))
    assert (split["ceiling"], split["over_ceiling"]) == ("broadcast", pytest.approx(25))
    assert colocated["gbs"] == pytest.approx(16) and sync_row(rows, "slime", None, False)["over_ceiling"] is None


def test_memory_is_compared_without_the_cache_that_sglang_takes_needed_or_not():
    held = {"weights": 8.0, "engine KV cache": 2.0}
    plans = [GpuPlan(0, 0, ("a",), held, 20.0), GpuPlan(0, 1, ("b",), held), GpuPlan(0, 2, (), {})]
    rows = compare_memory(plans, {0: 1, 1: 0}, [1.0, 1.0], [12.0, 30.0], {1: 20.5})
    assert [(row["gpu"], row["planned_gb"], row["kv_pool_gb"]) for row in rows] == [(1, 8.0, 20.5), (0, 10.0, None)]
    assert [row["measured_gb"] for row in rows] == pytest.approx([8.5, 11.0])
    assert [row["relative_error"] for row in rows] == pytest.approx([0.0625, 0.1])


@pytest.mark.parametrize(("said", "expected"), [("1000\n2000\n", [1.048576, 2.097152]), ("GPU 0: Pretend\n", []),
                                                ("[N/A]\n", []), ("", [])])
def test_what_the_driver_says_is_used(monkeypatch, said, expected):
    monkeypatch.setattr(memory.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout=said))
    assert used_gb() == pytest.approx(expected)


def test_the_highest_reading_of_each_card():
    assert peaks([[1.0, 5.0], [3.0, 2.0]]) == [3.0, 5.0]


def test_ceilings_have_units_and_nothing_that_one_card_cannot_show():
    one = ceilings({"cards": [{"name": "H100", "matmul_flops": 7e14, "copy_bytes": 1.5e12}]})
    assert one["matmul_tflops"] == [700.0] and one["copy_gbs"] == [1500.0] and one["broadcast_gbs"] is None


def test_observed_classes_write_down_their_work_by_phase(tmp_path):
    class Engine:
        def generate(self, requests):
            return requests

        def receive_weights(self, weight_version):
            return weight_version

    engine = observed(Engine, tmp_path)()
    assert engine.generate([1]) == [1] and engine.receive_weights(3) == 3
    found = read_phases(tmp_path)
    assert {phase: len(spans) for phase, spans in found.items() if spans} == {"rollout": 1, "verify": 1}


def test_an_engine_is_struck_once_after_it_got_its_requests():
    calls = []
    striker = Striker(SimpleNamespace(submit=lambda requests: calls.append(requests)))
    striker.strike = lambda: calls.append("struck")
    striker.submit([1]), striker.submit([2])
    assert calls == [[1], "struck", [2]]


def test_a_process_records_itself_between_two_calls(tmp_path):
    import torch

    actor = SimpleNamespace()
    began = time.time()
    inside.start_profile(actor, str(tmp_path))
    torch.rand(300, 300) @ torch.rand(300, 300)
    spans = inside.stop_profile(actor, str(tmp_path))
    assert spans and all(began - 0.05 < start <= end < time.time() + 0.05 for start, end in spans)
    assert inside.cache_tokens(actor) is None and inside.logged(actor) == {}


@pytest.mark.parametrize(("spans", "expected"), [
    ([], []), ([(3.0, 4.0), (1.0, 2.0)], [(1.0, 2.0), (3.0, 4.0)]),
    ([(1.0, 3.0), (2.0, 2.5), (3.0, 4.0)], [(1.0, 4.0)]),
])
def test_spans_are_merged(spans, expected):
    assert inside.merged(spans) == expected


def test_a_random_model_draws_what_its_tokenizer_knows_in_lines():
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 16}
    model = Qwen3ForCausalLM(Qwen3Config(**shapes.SHARED | sizes))
    shapes.make_speak(model)
    logits = model(torch.randint(10, VOCABULARY, (4, 50))).logits.detach()
    (line_break,) = Tokenizer.from_file(str(bundled() / "tokenizer.json")).encode("\n").ids
    drawn = logits.softmax(-1)
    assert drawn[..., VOCABULARY:].sum(-1).max() < 0.02
    assert 0.04 < drawn[..., line_break].min() < drawn[..., line_break].max() < 0.2
    assert (drawn[..., :VOCABULARY].sort(-1).values[..., -2]).max() < 0.01  # of the others, none is drawn often


def whole(**changed):
    median = {"wall_s": 1.4, "coordinator_share": 0.01, "logprob_gap": 0.01, "samples": 1024, "engines_equal": True,
              "checksums_differ": True}
    row = {
        "name": "colocated/megatron", "status": "done", "why": "", "model": "4B", "untaken": {}, "median": median,
        "sync": {"s": 0.5}, "idle": {"share": 0.3}, "memory": [{"relative_error": -0.2}, {"relative_error": 0.05}],
        "kill": {"struck": True, "lineage_complete": True, "ranks_kept": False}, "steps": [],
    }
    return row | changed


def judged(*rows, gpus=8):
    about = {"gpus": gpus, "cpu_rehearsal": False}
    return {goal["name"]: goal for goal in goals({"circumstances": about, "layouts": list(rows)})}


def test_goals_are_met_or_not_by_the_whole_layout():
    found = judged(whole())
    assert found["seconds per step"]["met"] is True and found["seconds per step, stretch"]["met"] is False
    assert found["idle share of the cards"]["met"] is False and found["logprob gap"]["met"] is True
    assert found["memory against the plan, relative error"]["value"] == 0.2
    assert found["memory against the plan, relative error"]["met"] is False
    assert found["nothing lost when an engine is killed"]["met"] is False
    assert found["seconds of a weight sync, slime's primitive"] | {"by_layout": {}} == {
        "name": "seconds of a weight sync, slime's primitive", "goal": None, "value": 0.5, "met": None,
        "reason": "colocated/megatron", "by_layout": {},
    }


def test_of_less_than_the_whole_layout_the_value_stands_alone():
    found = judged(whole(model="1.7B"), gpus=2)["seconds per step"]
    assert (found["value"], found["met"]) == (1.4, None) and "2 GPUs for 8; model 1.7B for 4B" in found["reason"]


def test_what_was_not_taken_has_its_reason():
    skipped = whole(name="split/ahead", status="skipped", why="time: 3 s left", median=None, idle=None)
    untaken = whole(idle=None, untaken={"idle": "no profiler"})
    found = judged(untaken, skipped)
    assert found["idle share of the cards"] | {"name": "", "goal": 0} == {
        "name": "", "goal": 0, "value": None, "met": None, "reason": "colocated/megatron: no profiler", "by_layout": {},
    }
    ahead = next(goal for name, goal in found.items() if "one step ahead" in name)
    assert ahead["value"] is None and ahead["reason"] == "split/ahead: time: 3 s left"
    assert found["seconds of a weight sync, our engine"]["reason"] != ""
