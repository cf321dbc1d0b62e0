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
    engine_card_bytes,
    engine_share,
    kv_cache_bytes,
    logits_bytes,
    model_shape,
    rollout_s,
    save_s,
    sync_s,
    train_flops,
    train_s,
    train_tokens,
    trainer_bytes,
    trainer_card_bytes,
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
    for name in [name for name in os.environ if name.startswith(("RLHAIKU_", "LLM_JUDGE_", "WANDB_", "RAY_AUTH"))]:
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


def test_variants_have_the_sizes_of_their_family():
    assert model_shape("Qwen/Qwen3-4B-Instruct-2507") == model_shape("Qwen/Qwen3-4B-Base") == QWEN


@pytest.mark.parametrize("model", ["somebody/something", "/vol/runs/first/checkpoints/step-000050/hf"])
def test_a_plan_goes_without_memory_and_time_where_the_size_is_unknown(model):
    plan = make_plan(load_config("reference", [f"model.path={model}"]), Resources())
    assert plan.refusals == () and plan.seconds == {} and plan.parameters == 0
    assert [gpu.actors for gpu in plan.gpus][7] == ("sglang engine 7", "megatron trainer rank 7")
    assert any(f"the sizes of {model} are not known" in note for note in plan.notes)
    done = CliRunner().invoke(app, ["plan", "--set", f"model.path={model}"])
    assert done.exit_code == 0 and "of unknown size" in done.output


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


def test_activations_are_all_that_layers_keep_or_their_inputs_and_one_layers_all():
    # A layer: 2 x (4 x 2560 + 3 x 128 x (32 + 8) + 3 x 9728) = 109,568 B a token; 36 of them, 3,944,448 B.
    assert QWEN.layer_bytes_per_token == 109_568
    assert activation_bytes(QWEN, 4096, recompute=False) == 4096 * 3_944_448  # 16.2 GB
    # 4096 x (36 x 2560 x 2 B + 109,568 B) = 0.755 + 0.449 GB
    assert activation_bytes(QWEN, 4096, recompute=True) == 4096 * (184_320 + 109_568)


def test_logits_are_several_buffers_and_may_be_made_in_chunks():
    assert logits_bytes(QWEN, 4096, is_chunked=False) == 4096 * 151_936 * 14  # 8.7 GB
    assert logits_bytes(QWEN, 8192, is_chunked=True) == 2**30 * 4
    assert logits_bytes(QWEN, 10, is_chunked=True) == 10 * 151_936 * 4


def test_limits_that_other_files_set():
    from actors.engines.vllm_engine import KV_BYTES
    from actors.trainers.forward import KERNEL_LOGITS_BYTES
    from launch.estimates import CHUNKED_LOGITS, VLLM_KV_BYTES

    assert (2 * CHUNKED_LOGITS, VLLM_KV_BYTES) == (KERNEL_LOGITS_BYTES, KV_BYTES)


def test_a_rollout_reads_weights_or_computes_whichever_is_longer():
    # 128 completions: (8.045 GB + 128 x 75 x 147,456 B) / 3.35 TB/s = 2.824 ms a step; prefill 16 x 60 tokens 7.81 ms.
    assert rollout_s(QWEN, H100, 16, 8, 0.5) == pytest.approx(30 * 2.8240e-3 / 0.5 + 7.809e-3, rel=1e-3)
    # 1024 completions on one card compute for longer than they read: 1024 x 8.045 GFLOP / 989 TFLOP/s = 8.330 ms.
    assert rollout_s(QWEN, H100, 128, 8, 0.5) == pytest.approx(30 * 8.330e-3 / 0.5 + 62.47e-3, rel=1e-3)


def test_a_train_step_is_6n_a_token_and_one_exchange():
    assert train_tokens(128, 8, is_shared=False) == 92_160
    assert train_tokens(128, 8, is_shared=True) == 38_400
    assert train_flops(QWEN, has_reference=False, recompute=False) == 6 * N
    # 2.224 PFLOP at 40 % of 7.912 PFLOP/s = 0.7028 s; 7/8 x 24.13 GB / 360 GB/s = 58.66 ms; Adam 5 ms.
    assert train_s(QWEN, H100, 8, 92_160 * 6 * N, 1, 0.4) == pytest.approx(0.7028 + 0.0587 + 0.005, rel=1e-3)
    assert train_s(QWEN, H100, 8, 0, 16, 0.4) == pytest.approx(16 * (0.05866 + 0.005), rel=1e-3)


def test_what_else_is_forwarded_costs_2n():
    # Recomputed is what the embedding does not hold: 2 x (4.022 - 0.389) billion; 31.4 GFLOP a token in all.
    assert train_flops(QWEN, has_reference=False, recompute=True) == 6 * N + 2 * (N - 151_936 * 2560)
    assert train_flops(QWEN, has_reference=False, recompute=True) == pytest.approx(31.4e9, rel=1e-3)
    assert train_flops(QWEN, has_reference=True, recompute=False) == 8 * N


def test_a_checkpoint_of_64_gb_is_written_read_and_copied():
    # 16 x 4.022 = 64.4 GB, three times at 1.5 GB/s.
    assert save_s(QWEN) == pytest.approx(3 * 64.36 / 1.5, rel=1e-3)


def test_a_sync_is_so_many_copies_of_the_weights_or_slimes():
    # 2 x 8.045 GB / (0.85 x 3.35 TB/s) = 5.65 ms within a card; 8.045 GB / 360 GB/s = 22.3 ms between cards.
    assert sync_s(QWEN, H100, is_colocated=True, by_slime=False) == pytest.approx(0.1130, rel=1e-3)
    assert sync_s(QWEN, H100, is_colocated=False, by_slime=False) == pytest.approx(0.0737, rel=1e-3)
    assert sync_s(QWEN, H100, is_colocated=False, by_slime=True) == pytest.approx(8.045 / 16.7, rel=1e-3)
    assert sync_s(QWEN, H100, is_colocated=True, by_slime=True) == pytest.approx(8.045 / 11.3, rel=1e-3)


def test_the_reference_run():
    plan = make_plan(load_config("reference"), Resources())
    assert plan.refusals == ()
    assert [gpu.actors for gpu in plan.gpus][7] == ("sglang engine 7", "megatron trainer rank 7")
    # Trainer: 30.169 + activations 8.078 + logits 4.357 + process 8.5 = 51.103
    # engine: 8.045 + 128 x 360 x 147,456 B = 6.795 + process and buffers 4.3
    assert plan.gpus[0].total_gb == pytest.approx(51.103 + 19.140, abs=0.01)
    # 0.8 x (80 - 51.103 - 4.3) = 19.68 GB, 0.246 of the card: less than 8.045 + 2 x 6.795 = 21.63.
    assert plan.engine_share == pytest.approx(0.246, abs=0.001)
    assert plan.gpus[0].preallocated_kv_gb == pytest.approx(11.63, abs=0.05)
    assert plan.gpus[0].taken_gb == pytest.approx(51.103 + 19.68 + 4.3, abs=0.05)
    # 30 x 2.824 ms at a tenth of the limit, and prefill; 2.224 PFLOP at 18 %, and 64 ms; 8.045 GB at 11.3 GB/s.
    assert plan.seconds["rollout"] == pytest.approx(0.8472 + 0.0078, rel=1e-3)
    assert plan.seconds["train"] == pytest.approx(1.5618 + 0.0637, rel=1e-3)
    assert plan.seconds["step"] == pytest.approx(0.8550 + 1.6255 + 0.7119, rel=1e-3)
    # 360 s + 50 steps + 6 evaluations + 5 checkpoints, on 8 GPUs at $3.95.
    hours = (360 + 50 * plan.seconds["step"] + 6 * plan.seconds["evaluation"] + 5 * plan.seconds["save"]) / 3600
    assert plan.run_hours == pytest.approx(hours)
    assert plan.cost == pytest.approx(hours * 8 * 3.95)
    workers = [f"reward worker {place}" for place in range(8)]
    assert [actor.name for actor in plan.cpu_actors] == ["driver", "registry", *workers]


@pytest.mark.parametrize(("preset", "gpu"), [("reference", "H100:8"), ("seed", "H100:8"), ("one-gpu", "H100"),
                                             ("laptop", "")])
def test_every_preset_fits_its_machine(preset, gpu):
    assert make_plan(load_config(preset), Resources(gpu=gpu)).refusals == ()


def test_completions_of_8192_tokens_need_recomputation():
    [said] = make_plan(load_config("seed", ["trainer.recompute=false"]), Resources()).refusals
    assert "of 80 GB: set trainer.recompute=true" in said


def test_four_billion_parameters_do_not_fit_one_card():
    """18 N of a trainer alone, whose weights are the only slot, and 2 N of an engine: 80.4 GB without a token."""
    overrides = ["model.path=Qwen/Qwen3-4B", "trainer.recompute=true", "trainer.micro_batch_tokens=1024"]
    plan = make_plan(load_config("one-gpu", overrides), Resources(gpu="H100"))
    parts = plan.gpus[0].gigabytes
    assert parts["weight slots"] == 0
    assert sum(parts[name] for name in ("weights", "gradients", "optimizer shard")) == pytest.approx(72.4, abs=0.01)
    [said] = plan.refusals
    assert "1 GPUs would need" in said and "take a smaller model" in said


def test_memory_that_stays_open_is_one_more_copy_of_the_weights_on_each_card():
    config = load_config("reference", ["cluster.weight_path=slots", "trainer.micro_batch_tokens=2048"])
    plan = make_plan(config, Resources())
    assert plan.refusals == ()
    assert [gpu.gigabytes["weight slots"] for gpu in plan.gpus] == [pytest.approx(2 * N / 1e9)] * 8
    assert "weight slots" not in make_plan(load_config("reference"), Resources()).gpus[0].gigabytes


def test_sglang_is_started_with_the_share_of_the_plan(monkeypatch):
    from launch import start_slime

    monkeypatch.setattr(start_slime, "gpu_memory_bytes", lambda: 80e9)
    monkeypatch.setattr(start_slime, "_local_model", lambda path: path)
    config = load_config("reference")
    assert start_slime._engine_memory(config, 8, True) == make_plan(config, Resources()).engine_share
    assert engine_share(load_config("reference", ["cluster.colocate=false"]), QWEN, 4, 80e9) == 0.85


def test_an_engine_takes_what_it_needs_and_no_more_than_a_trainer_leaves():
    """A trainer that has little room gives memory back and takes it again all the time."""
    config = load_config("reference", ["trainer.micro_batch_tokens=4096"])
    assert engine_share(config, QWEN, 2, 141e9) == pytest.approx((8.045 + 2 * 6.795) / 141, abs=0.001)
    assert engine_share(config, QWEN, 8, 80e9) == pytest.approx(0.8 * (80 - 63.538 - 4.3) / 80, abs=0.001)
    # Without Transformer Engine 1.5 x 16.156 GB of activations.
    assert trainer_card_bytes(config, QWEN, 8, has_te=False)["activations"] == pytest.approx(24.23e9, rel=1e-3)
    left = 100 - 71.616 - 4.3
    assert engine_share(config, QWEN, 8, 100e9, has_te=False) == pytest.approx(0.8 * left / 100, abs=0.001)


def test_the_torch_engine_keeps_a_prompt_once_a_group_and_the_logits_of_all_it_draws():
    settings = ["rollout.engine=torch", "trainer.backend=torch", "rollout.max_tokens=30", "evaluation.max_tokens=30"]
    parts = engine_card_bytes(load_config("reference", settings), QWEN)
    assert parts["engine KV cache"] == (16 * 60 + 128 * 30) * 147_456
    assert parts["engine logits"] == 128 * 151_936 * 4


def test_engines_and_trainer_may_share_the_cards_between_them():
    plan = make_plan(load_config("reference", ["cluster.colocate=false", "rollout.num_engines=4"]), Resources())
    assert [gpu.actors for gpu in plan.gpus][3:5] == [("sglang engine 3",), ("megatron trainer rank 0",)]
    assert plan.refusals == () and plan.engine_share == 0.85
    assert plan.gpus[7].preallocated_kv_gb == 0


def test_torch_actors_are_on_the_cards_that_the_run_places_them_on():
    def actors(*overrides, gpus):
        config = load_config("one-gpu", [f"cluster.gpus_per_node={gpus}", *overrides])
        plan = make_plan(config, Resources(gpu=f"H100:{gpus}"))
        assert plan.refusals == ()
        return [gpu.actors for gpu in plan.gpus], [gpu.gigabytes for gpu in plan.gpus]

    alone, _ = actors("cluster.colocate=false", "rollout.num_engines=2", gpus=1)  # a card alone is always shared
    assert alone == [("torch engine 0", "torch engine 1", "torch trainer rank 0")]
    split, memory = actors("cluster.colocate=false", "rollout.num_engines=1", gpus=2)
    assert split == [("torch engine 0", "weight relay"), ("torch trainer rank 0",)]
    assert memory[0]["weight slots"] == pytest.approx(2 * SHAPES["Qwen/Qwen3-0.6B"].parameters / 1e9)
    shared, _ = actors("rollout.num_engines=2", gpus=2)
    assert shared == [
        ("torch engine 0", "torch trainer rank 0"), ("torch engine 1", "torch trainer rank 1", "weight relay"),
    ]  # fmt: skip


def test_engines_on_several_cards_and_copies_of_a_model_that_ranks_share():
    overrides = ["cluster.colocate=false", "rollout.num_engines=2", "rollout.gpus_per_engine=2"]
    plan = make_plan(load_config("reference", [*overrides, "trainer.tensor_parallel=4"]), Resources())
    assert plan.refusals == ()
    assert [gpu.actors[0] for gpu in plan.gpus[:5]] == [
        "sglang engine 0", "sglang engine 0", "sglang engine 1", "sglang engine 1", "megatron trainer rank 0",
    ]  # fmt: skip
    few = ["rollout.groups_per_step=8", "rollout.group_size=2", "trainer.optimizer_steps=4"]
    assert make_plan(load_config("reference", [*few, "trainer.tensor_parallel=4"]), Resources()).refusals == ()
    assert "not divisible among 8" in make_plan(load_config("reference", few), Resources()).refusals[0]


def test_actors_without_a_card_are_listed_by_node():
    overrides = ["cluster.num_nodes=2", "rollout.num_engines=2", "reward.num_workers=2"]
    plan = make_plan(load_config("laptop", overrides), Resources(nodes=2))
    assert plan.refusals == ()
    assert [actor.name for actor in plan.cpu_actors if actor.node == 1] == [
        "torch engine 1", "reward worker 1", "weight relay 1",
    ]  # fmt: skip
    assert {"node": 0, "name": "torch trainer"} in plan.to_dict()["cpu_actors"]


@pytest.mark.parametrize(("overrides", "resources", "reason"), [
    (["model.path=Qwen/Qwen3-8B", "algorithm.kl_coef=0.1"], {}, "8 GPUs would need"),
    (["rollout.groups_per_step=100"], {}, "100 groups a step are not divisible among 8 engines"),
    (["rollout.num_engines=8", "cluster.colocate=false"], {}, "8 engines leave 0 of 8 GPUs"),
    ([], {"gpu": "H100:9"}, "1 to 8 GPUs"),
    ([], {"gpu": "H100:4"}, "cluster.gpus_per_node is 8, RLHAIKU_GPU is H100:4"),
    ([], {"nodes": 2}, "cluster.num_nodes is 1, RLHAIKU_NODES is 2"),
    ([], {"timeout_s": 90_000}, "a timeout is at most 86400 s"),
    ([], {"gpu": "H100:4", "nodes": 2}, "several nodes are whole hosts of 8 GPUs"),
    ([], {"gpu": "", "nodes": 2}, "several nodes are whole hosts of 8 GPUs"),
    (["judge.required=true"], {}, "judge.required=true needs LLM_JUDGE_URL"),
    (["judge.required=true"], {"secrets": ("other",)}, "RLHAIKU_SECRETS=NAME=LLM_JUDGE_URL"),
    (["output.sinks=['wandb']"], {"secrets": ("hf=HF_TOKEN",)}, "output.sinks needs WANDB_API_KEY"),
    ([], {"has_dashboard": True}, "RLHAIKU_DASHBOARD=1 needs RAY_AUTH_TOKEN"),
    (["rollout.max_staleness=1"], {}, "rollout.max_staleness is 0 with it"),
    (["rollout.engine=torch"], {}, "rollout.engine=sglang goes with trainer.backend=megatron"),
    (["reward.functions={'nobody:here' = 1.0}"], {}, "must name functions that can be imported"),
    (["trainer.backend=torch", "rollout.engine=vllm", "trainer.tensor_parallel=2"], {}, "is for Megatron and SGLang"),
    (["trainer.backend=torch", "rollout.engine=vllm", "cluster.weight_path=slots"], {}, "is for Megatron and SGLang"),
    (["cluster.weight_path=slots", "cluster.colocate=false", "rollout.num_engines=4"], {}, "share their card with"),
    (["cluster.weight_path=slots", "rollout.gpus_per_engine=2", "rollout.num_engines=4"], {}, "and take one each"),
])
def test_what_would_fail_is_refused_with_the_reason(overrides, resources, reason):
    plan = make_plan(load_config("reference", overrides), Resources(**resources))
    assert any(reason in said for said in plan.refusals), plan.refusals


def test_a_secret_that_is_said_to_have_it_will_do():
    overrides = ["judge.required=true", "output.sinks=['wandb']"]
    resources = Resources(secrets=("judge=LLM_JUDGE_URL+LLM_JUDGE_API_KEY", "wandb=WANDB_API_KEY"))
    plan = make_plan(load_config("reference", overrides), resources)
    assert plan.refusals == () and plan.secrets[:2] == ("judge", "wandb")


@pytest.mark.parametrize(("variable", "value"), [
    ("RLHAIKU_SERVE_GPU_COUNT", "9"), ("RLHAIKU_JUDGE_GPU_COUNT", "0"), ("RLHAIKU_SERVE_GPU_COUNT", "two"),
])
def test_a_server_on_more_than_one_host_is_refused(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    [said] = make_plan(load_config("reference"), Resources()).refusals
    assert "a web server cannot be clustered" in said and variable in said


def test_what_the_judge_would_refuse_is_refused(monkeypatch):
    monkeypatch.setenv("LLM_JUDGE_URL", "ftp://judge")
    [said] = make_plan(load_config("reference"), Resources()).refusals
    assert "LLM_JUDGE_URL must be an http(s) URL" in said


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
                 "rollout.group_size", "huggingface-secret, LLM_JUDGE_API_KEY", "optimizer shard", "$3.95",
                 "driver + registry", "needed, GB", "taken, GB"):
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
