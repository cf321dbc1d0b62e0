"""`rlhaiku plan`: every formula against numbers worked out by hand for Qwen3-4B on H100."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch.checks import resolve_model
from launch.cli import app
from launch.estimates import (
    GPUS,
    SHAPES,
    activation_bytes,
    kv_cache_bytes,
    model_shape,
    rollout_s,
    sync_s,
    train_s,
    train_tokens,
    trainer_bytes,
)
from launch.plan import make_plan
from launch.resources import Resources
from rlhaiku.config import load_config
from rlhaiku.errors import BadInput

QWEN, H100 = SHAPES["Qwen/Qwen3-4B"], GPUS["H100"]
N = 4_022_468_096
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("RLHAIKU_", "LLM_JUDGE_"))]:
        monkeypatch.delenv(name)


def test_parameters_are_those_of_the_published_model():
    # A layer: 2560 x 128 x (2 x 32 + 2 x 8) + 3 x 2560 x 9728 + norms 2 x 2560 + 2 x 128 = 100,930,816.
    assert QWEN.parameters == 36 * 100_930_816 + 151_936 * 2560 + 2560 == N


def test_the_shape_of_a_directory_counts_the_parameters_that_its_file_has():
    from safetensors import safe_open

    directory = resolve_model("bundled")
    with safe_open(f"{directory}/model.safetensors", "numpy") as file:
        held = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  (no dictionary)
    assert model_shape(directory).parameters == held


def test_a_model_of_unknown_size_is_refused():
    with pytest.raises(BadInput, match="needs the model's sizes"):
        model_shape("somebody/something")


def test_keys_and_values():
    assert QWEN.kv_bytes_per_token == 2 * 36 * 8 * 128 * 2 == 147_456
    assert kv_cache_bytes(QWEN, 128, 340) == 128 * 400 * 147_456  # 7.55 GB


def test_a_trainer_rank_keeps_30_gb():
    parts = trainer_bytes(QWEN, 8, has_reference=False)
    assert parts == {"weights": 2 * N, "gradients": 4 * N, "optimizer shard": 1.5 * N}
    assert sum(parts.values()) / 1e9 == pytest.approx(8.045 + 16.090 + 6.034, abs=0.002)
    assert trainer_bytes(QWEN, 8, has_reference=True)["reference model"] == 2 * N
    cut = trainer_bytes(QWEN, 8, has_reference=False, tensor_parallel=2)
    assert cut == {"weights": N, "gradients": 2 * N, "optimizer shard": 1.5 * N}


def test_activations_are_layer_inputs_and_logits():
    # 9216 tokens: 36 x 2560 x 2 B = 1.70 GB of inputs, 151,936 x 4 B = 5.60 GB of logits.
    assert activation_bytes(QWEN, 9216) / 1e9 == pytest.approx(1.699 + 5.601, abs=0.001)


def test_a_rollout_reads_weights_or_computes_whichever_is_longer():
    # 128 completions: (8.045 GB + 128 x 75 x 147,456 B) / 3.35 TB/s = 2.824 ms a step; prefill 16 x 60 tokens 7.81 ms.
    assert rollout_s(QWEN, H100, 16, 8) == pytest.approx(30 * 2.8240e-3 / 0.5 + 7.809e-3, rel=1e-3)
    # 1024 completions on one card compute for longer than they read: 1024 x 8.045 GFLOP / 989 TFLOP/s = 8.330 ms.
    assert rollout_s(QWEN, H100, 128, 8) == pytest.approx(30 * 8.330e-3 / 0.5 + 62.47e-3, rel=1e-3)


def test_a_train_step_is_6n_a_token_and_one_exchange():
    assert train_tokens(128, 8, is_shared=False) == 92_160
    assert train_tokens(128, 8, is_shared=True) == 38_400
    # 2.224 PFLOP at 40 % of 7.912 PFLOP/s = 0.7028 s; 7/8 x 24.13 GB / 360 GB/s = 58.66 ms; Adam 5 ms.
    assert train_s(QWEN, H100, 8, 92_160, 1, has_reference=False) == pytest.approx(0.7028 + 0.0587 + 0.005, rel=1e-3)
    assert train_s(QWEN, H100, 8, 0, 16, has_reference=False) == pytest.approx(16 * (0.05866 + 0.005), rel=1e-3)
    with_reference = train_s(QWEN, H100, 8, 92_160, 0, has_reference=True)
    assert with_reference == pytest.approx(0.7028 * 8 / 6, rel=1e-3)


def test_a_sync_is_ten_copies_of_the_weights():
    # 2 x 8.045 GB / (0.85 x 3.35 TB/s) = 5.65 ms within a card; 8.045 GB / 360 GB/s = 22.3 ms between cards.
    assert sync_s(QWEN, H100, is_colocated=True) == pytest.approx(0.0565, rel=1e-3)
    assert sync_s(QWEN, H100, is_colocated=False) == pytest.approx(0.2235, rel=1e-3)


def test_the_reference_run():
    plan = make_plan(load_config("reference"), Resources())
    assert plan.refusals == ()
    assert [gpu.actors for gpu in plan.gpus][7] == ("sglang engine 7", "megatron trainer rank 7")
    # 8.045 + 128 x 360 x 147,456 B = 6.795 + 30.169 + 4096 x (184,320 + 607,744) B = 3.244
    assert plan.gpus[0].total_gb == pytest.approx(48.25, abs=0.01)
    assert plan.seconds["step"] == pytest.approx(0.1773 + 0.7665 + 0.0565, rel=1e-3)
    # 360 s + 50 steps + 6 evaluations + 5 checkpoints of 30 s, on 8 GPUs at $3.95.
    hours = (360 + 50 * plan.seconds["step"] + 6 * plan.seconds["evaluation"] + 150) / 3600
    assert plan.run_hours == pytest.approx(hours)
    assert plan.cost == pytest.approx(hours * 8 * 3.95)
    assert plan.largest_engine_share == pytest.approx(1 - (30.169 + 3.244) / 80, abs=1e-3)


def test_engines_and_trainer_may_share_the_cards_between_them():
    overrides = ["cluster.colocate=false", "rollout.num_engines=4", "rollout.max_staleness=1"]
    plan = make_plan(load_config("reference", overrides), Resources())
    assert [gpu.actors for gpu in plan.gpus][3:5] == [("sglang engine 3",), ("megatron trainer rank 0",)]
    assert plan.seconds["step"] == pytest.approx(plan.seconds["train"] + plan.seconds["sync"]), "they overlap"
    assert plan.refusals == () and plan.largest_engine_share == 0


@pytest.mark.parametrize(("overrides", "resources", "reason"), [
    (["model.path=Qwen/Qwen3-8B", "algorithm.kl_coef=0.1"], {}, "8 GPUs would need 104.7 of 80 GB"),
    (["rollout.groups_per_step=100"], {}, "100 groups a step are not divisible among 8 engines"),
    (["rollout.num_engines=8", "cluster.colocate=false"], {}, "8 engines leave 0 of 8 GPUs"),
    ([], {"gpu": "H100:9"}, "1 to 8 GPUs"),
    ([], {"gpu": "H100:4"}, "cluster.gpus_per_node is 8, RLHAIKU_GPU is H100:4"),
    ([], {"nodes": 2}, "cluster.num_nodes is 1, RLHAIKU_NODES is 2"),
    ([], {"timeout_s": 90_000}, "a timeout is at most 86400 s"),
    (["judge.required=true"], {}, "LLM_JUDGE_URL is not set"),
])
def test_what_would_fail_is_refused_with_the_reason(overrides, resources, reason):
    plan = make_plan(load_config("reference", overrides), Resources(**resources))
    assert any(reason in said for said in plan.refusals), plan.refusals


def test_a_batch_that_the_ranks_cannot_share_is_refused():
    overrides = ["rollout.groups_per_step=8", "rollout.group_size=2", "trainer.optimizer_steps=8"]
    [said] = make_plan(load_config("reference", overrides), Resources()).refusals
    assert said == "2 completions an optimizer step are not divisible among 8 trainer ranks"


def test_the_command_shows_it_all_and_names_secrets_only(monkeypatch):
    monkeypatch.setenv("LLM_JUDGE_API_KEY", "PLANTED")
    monkeypatch.setenv("RLHAIKU_SECRETS", "huggingface-secret")
    done = CliRunner().invoke(app, ["plan"])
    assert done.exit_code == 0, done.output
    for part in ("sglang engine 7 + megatron trainer rank 7", "rlhaiku-runs at /vol/runs", "nightly-dev-20260722a",
                 "rollout.group_size", "huggingface-secret, LLM_JUDGE_API_KEY", "optimizer shard", "$3.95"):
        assert part in done.output
    assert "PLANTED" not in done.output


def test_refusals_are_an_exit_status():
    done = CliRunner().invoke(app, ["plan", "--set", "judge.required=true", "--json"])
    assert done.exit_code == 2
    plan = json.loads(done.output)
    assert plan["refusals"] and plan["placement"][0]["gigabytes"]["weights"] == pytest.approx(8.045, abs=0.001)
    assert plan["config"]["rollout"]["group_size"] == 8


def test_a_group_of_one_has_nobody_to_compare_with():
    done = CliRunner().invoke(app, ["plan", "--set", "rollout.group_size=1"])
    assert isinstance(done.exception, BadInput) and "greater than or equal to 2" in str(done.exception)


def test_planning_is_light():
    code = (
        "import sys, launch.plan, launch.plan_view; from launch.plan import *; from rlhaiku.config import load_config;"
        "make_plan(load_config('reference'), Resources());"
        "print([m for m in ('torch', 'transformers', 'ray', 'modal', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
