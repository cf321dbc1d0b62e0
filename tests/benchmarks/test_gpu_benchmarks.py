"""What of the GPU benchmarks can be seen without a GPU; `benchmarks.gpu.session --smoke` rehearses the rest."""

import importlib
import json
import sys
import tarfile
import time
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import pytest
import torch

from benchmarks import sides
from benchmarks.gpu import learning_curve, pack_shapes, session
from benchmarks.gpu.session import STAGES, Session, Stage, command, run_lane
from benchmarks.gpu.timeline import idle_share, read_trace, union_s
from benchmarks.models import request


@pytest.mark.parametrize(("windows", "share"), [
    ([(0.0, 10.0)], 0.7), ([(2.0, 4.0)], 0.0), ([(5.0, 6.0)], 1.0), ([(2.0, 4.0), (6.0, 8.0)], 0.5),
])
def test_a_card_is_idle_where_no_process_has_a_kernel(windows, share):
    engine, trainer = [(3.0, 4.0), (1.0, 2.0), (3.2, 3.4)], [(2.0, 3.5)]
    assert idle_share(engine + trainer, windows) == pytest.approx(share)


def test_an_idle_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one window"):
        idle_share([(0.0, 1.0)], [])


def test_kernels_of_a_trace_are_on_the_machines_clock(tmp_path):
    events = [
        {"ph": "X", "cat": "kernel", "ts": 1_000_000.0, "dur": 500.0},
        {"ph": "X", "cat": "cpu_op", "ts": 0.0, "dur": 9.0},
        {"ph": "X", "cat": "gpu_memcpy", "ts": 2_000_000.5, "dur": 0.5}, {"ph": "f", "cat": "kernel", "ts": 3.0},
    ]
    path = tmp_path / "a.trace"
    path.write_text(json.dumps({"baseTimeNanoseconds": 7_000_000_000, "traceEvents": events}))
    assert read_trace(path) == [(8.0, 8.0005), (pytest.approx(9.0000005), pytest.approx(9.000001))]


def test_torchs_own_trace_is_read_where_it_was_recorded(tmp_path):
    from torch.profiler import ProfilerActivity, profile

    matrix = torch.rand(400, 400)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        began = time.time()
        for _ in range(20):
            matrix = (matrix @ matrix).softmax(0)
        ended = time.time()
    profiled.export_chrome_trace(str(tmp_path / "a.trace"))
    spans = read_trace(tmp_path / "a.trace", ("cpu_op",))
    assert union_s(spans, (began - 0.05, ended + 0.05)) > 0.5 * (ended - began)
    assert all(began - 0.05 < start <= end < ended + 0.05 for start, end in spans)


def test_prompts_of_different_claims_differ_in_their_first_block():
    prompts = {request(claim, prompt_tokens=16, max_tokens=1, group_size=1).prompt.token_ids for claim in range(5000)}
    assert len(prompts) == 5000


def test_every_asker_has_prompts_of_its_own(monkeypatch):
    from benchmarks.gpu import rollout

    monkeypatch.setattr(rollout, "_claims", count())
    groups, ungrouped = rollout.asker(3), rollout.asker(2, each=1)
    asked = [groups(), ungrouped(), groups()]
    assert [len(some) for some in asked] == [3, 16, 3]
    prompts = [{each.prompt.prompt_id for each in some} for some in asked]
    assert [len(some) for some in prompts] == [3, 2, 3] and len(set.union(*prompts)) == 8


@pytest.fixture
def vllm(monkeypatch):
    """The stand-in for vLLM, for one test."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: None)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "vllm_offline"))
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    yield importlib.import_module("vllm")
    for name in ("vllm.envs", "vllm"):
        del sys.modules[name]


def test_stock_vllm_is_in_a_process_of_its_own_even_after_an_engine_of_ours(vllm, tmp_path):
    from benchmarks.gpu import rollout, rollout_speed
    from tests.tiny import save_tiny_model

    model = save_tiny_model(tmp_path)
    spec = rollout_speed.VllmSpec(str(model), tmp_path / "unused", 2, 0, 64, 30, options=(("load_format", "dummy"),))
    vllm.envs.disable_envs_cache()
    rollout.os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    engine = rollout_speed.OnCardByVllm(spec)
    groups = engine.generate(rollout.asker(2)())
    assert [[len(c.token_ids) for c in group.completions] for group in groups] == [[30] * 8] * 2
    for options in (rollout.STOCK, rollout.TUNED, rollout.UNGROUPED):
        with rollout.StockVllm(model, options, flat_logprobs=True) as theirs:
            assert theirs._llm._apart
            assert len(theirs.generate(rollout.asker(2, each=1)())) == 16


def test_what_libraries_print_around_a_result_is_no_result(capsys):
    assert sides.said('noise\nRESULT {"a": 1}\nRESULT [2]\nbye', "RESULT ") == [2]
    with pytest.raises(SystemExit, match="no line begins with 'RESULT '"):
        sides.said("noise", "RESULT ")


def test_steps_of_changing_shapes_are_the_same_on_both_sides():
    one, other, longer = (pack_shapes.batch(mean, 3, 4) for mean in (20, 20, 44))
    assert one == other != longer
    lengths = [[len(sample.token_ids) for group in made.groups for sample in group.samples] for made in (one, longer)]
    assert all(pack_shapes.SHORTEST <= each <= pack_shapes.LONGEST for some in lengths for each in some)
    assert sum(lengths[1]) > 1.5 * sum(lengths[0]) and len(set(lengths[0])) > 5


@pytest.mark.parametrize(("gap", "length", "void"), [(0.01, 41.0, 0), (0.02, 41.0, 1), (0.01, 50.0, 1), (0.5, 1.0, 2)])
def test_a_ratio_is_void_where_the_sides_did_unlike_work(gap, length, void):
    peers, ours = [{"length": [40.0], "sync": [0.1]}], [{"length": [length], "sync": [0.01], "gap": [gap]}]
    said = sides.guards(peers, ours, 0)
    assert sum(line.startswith("VOID") for line in said) == void
    assert said[-1] == "weights to the engine: TRL 100.0 ms, ours 10.0 ms until it may read them"
    forgiven = sides.guards(peers, ours, 0, rounding=0.03)  # of a model whose bf16 is as far from its fp32
    assert sum("VOID: the logprob gap" in line for line in forgiven) == (gap >= 0.042)


def test_a_models_own_gap_is_that_of_its_rounding(tmp_path):
    from benchmarks.models import bundled

    file = tmp_path / "step-000000.json"
    rows = [{"prompt": "Write a haiku about rain.", "text": text} for text in ("rain upon the roof", "", "a drop")]
    file.write_text(json.dumps({"samples": rows}))
    assert 1e-4 < sides.own_gap(bundled(), file) < 0.05


@pytest.fixture
def made(tmp_path):
    (tmp_path / "out").mkdir()
    return Session(tmp_path / "out", tmp_path / "scratch", time.monotonic() + 60, smoke=False)


def test_a_stage_that_fails_or_hangs_ends_alone(made, monkeypatch, capsys):
    monkeypatch.setitem(STAGES, "good", Stage("-c import\tos;print(os.environ['CUDA_VISIBLE_DEVICES'])", 30))
    monkeypatch.setitem(STAGES, "bad", Stage("-c raise\tSystemExit(3)", 30))
    monkeypatch.setitem(STAGES, "slow", Stage("-c import\ttime;print('begun',flush=True);time.sleep(60)", 3))
    monkeypatch.setattr(session, "command", lambda made, stage, limit_s: [
        sys.executable, *(part.replace("\t", " ") for part in stage.command.split(" ")),
    ])
    found = run_lane(made, "0+1:good,bad,slow,good")
    assert [status.split(",")[0] for status in found.values()] == ["passed", "exit 3", "cut off after 3 s"]
    rows = [json.loads(line) for line in (made.output / "stages.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["good", "bad", "slow", "good"]
    assert (made.output / "cards-0-1.log").read_text().splitlines() == ["0,1", "begun", "0,1"]
    assert "    0,1" in capsys.readouterr().out


def test_no_stage_begins_without_time(made):
    late = Session(made.output, made.scratch, time.monotonic() + 5, smoke=False)
    assert run_lane(late, "0:links") == {"links": "skipped: no time left"}


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("name", STAGES)
def test_stages_name_what_is_there(made, name, smoke):
    asked = command(Session(made.output, made.scratch, made.deadline, smoke), STAGES[name], 100)
    if asked is None:
        assert smoke
        return
    assert asked[0] == sys.executable and asked[1] == "-m" and find_spec(asked[2]), asked
    assert not [part for part in asked if "{" in part]


def test_a_run_tells_where_it_got(tmp_path, capsys):
    (tmp_path / "eval").mkdir()
    summary = {"structure_mean": 0.25, "structure_ci": [0.2, 0.3], "strict_575": 0.01, "topic_mention": 0.5}
    summary["distinct_2"] = 0.9
    for step in (0, 50):
        (tmp_path / "eval" / f"step-{step:06d}.json").write_text(json.dumps({"summary": summary}))
    seconds = {"time/rollout_s": 1, "time/train_s": 1, "time/sync_s": 0}
    rows = [{"train/logprob_gap": 0.01 * i, "reward/mean": 0.5} | seconds for i in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    poems = [{"step": step, "text": f"poem {step}"} for step in range(10)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in poems))
    assert [step for step, _ in learning_curve.curve(tmp_path)] == [0, 50]
    assert [step for step, _ in learning_curve.poems(tmp_path, 4)] == [0, 3, 6, 9]
    learning_curve.tell(tmp_path)
    said = capsys.readouterr().out
    assert "step    50: structure x legitimacy 0.250 [0.200, 0.300]" in said and "-- step 9\npoem 9" in said
    assert "3 steps, 6 s of training" in said and "largest logprob gap 0.0200" in said
    (tmp_path / "checkpoints").mkdir()
    learning_curve.pack(tmp_path, tmp_path / "run.tar.gz")
    with tarfile.open(tmp_path / "run.tar.gz") as tar:
        assert {name.split("/")[1] for name in tar.getnames()} == {"metrics.jsonl", "samples.jsonl", "eval"}


class Worker:
    """Multiplies when told."""

    def work(self, step):
        """At a step."""
        began = time.time()
        matrix = torch.rand(300, 300)
        for _ in range(10):
            matrix = (matrix @ matrix).softmax(0)
        return began, time.time()


def test_a_process_is_recorded_in_the_steps_asked_for(tmp_path, monkeypatch):
    from benchmarks.gpu.idle import traced

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    worker = traced(Worker, "work", lambda step: step, tmp_path, (2, 4))()
    windows = [worker.work(step) for step in range(6)]
    (trace,) = tmp_path.glob("Worker-*.trace")
    spans = read_trace(trace, ("cpu_op",))
    busy = [union_s(spans, window) / (window[1] - window[0]) for window in windows]
    assert [share > 0.3 for share in busy] == [False, False, True, True, False, False], busy
