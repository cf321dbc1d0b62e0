"""slime's flags from a run's settings, and the check that none of them is overlooked, with a parser like slime's."""

import argparse
import json
import sys
import types

import pytest

from actors.trainers.slime_arguments import SlimeRun, parse_flags, slime_flags
from launch.checks import check_settings
from rlhaiku.config import load_config
from rlhaiku.errors import BadInput
from tests.actors.qwen3_shapes import QWEN3


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3["qwen3-4B"]))
    return tmp_path


def run_with(**changes):
    always = {"save": "/ckpt", "save_hf": "/ckpt/{rollout_id}", "num_trainer_gpus": 8, "num_engines": 8}
    return SlimeRun(**always | changes)


def flags_of(model, *settings, **changes):
    """{flag: value}; a bare flag's value is None."""
    line = slime_flags(load_config("reference", settings), model, run_with(**changes))
    flags = {}
    for token in line:
        if token.startswith("--"):
            assert token not in flags, f"{token} is there twice"
            flags[name := token] = None
        else:
            flags[name] = f"{flags[name]} {token}" if flags[name] else token
    return flags


def test_the_reference_run(model):
    flags = flags_of(model)
    expected = {
        "--num-layers": "36", "--rotary-base": "1000000", "--qk-layernorm": None, "--swiglu": None,
        "--advantage-estimator": "grpo", "--eps-clip": "0.2", "--eps-clip-high": "0.28", "--use-rollout-logprobs": None,
        "--rollout-temperature": "1.0", "--calculate-per-token-loss": None, "--kl-coef": "0.0",
        "--rollout-batch-size": "128", "--n-samples-per-prompt": "8", "--num-rollout": "50",
        "--num-steps-per-rollout": "1", "--use-dynamic-batch-size": None, "--max-tokens-per-gpu": "2048",
        "--optimizer": "adam", "--lr": "1e-06", "--lr-decay-style": "constant", "--weight-decay": "0.1",
        "--adam-beta1": "0.9", "--adam-beta2": "0.98", "--adam-eps": "1e-08", "--clip-grad": "1.0", "--seed": "1",
        "--hf-checkpoint": str(model), "--load": str(model), "--save": "/ckpt", "--save-hf": "/ckpt/{rollout_id}",
        "--attention-backend": "flash", "--distributed-timeout-minutes": "10", "--start-rollout-id": "0",
    }  # fmt: skip
    assert {key: flags.get(key, "absent") for key in expected} == expected
    absent = ("--untie-embeddings-and-output-weights", "--ref-load", "--use-kl-loss", "--sequence-parallel", "--spec",
              "--recompute-granularity", "--normalize-advantages")  # fmt: skip
    assert not flags.keys() & set(absent)


def test_colocated_and_resident(model):
    flags = flags_of(model)
    assert {"--colocate", "--no-offload-train", "--no-offload-rollout"} <= flags.keys()
    assert flags["--rollout-num-gpus"] == flags["--actor-num-gpus-per-node"] == flags["--num-gpus-per-node"] == "8"


def test_split_gpus(model):
    flags = flags_of(model, "cluster.colocate=false", num_trainer_gpus=4, num_engines=2, gpus_per_engine=2)
    assert not {"--colocate", "--no-offload-train", "--no-offload-rollout"} & flags.keys()
    assert flags["--actor-num-gpus-per-node"] == "4" and flags["--actor-num-nodes"] == "1"
    assert flags["--rollout-num-gpus"] == "4" and flags["--rollout-num-gpus-per-engine"] == "2"


def test_more_than_one_node(model):
    flags = flags_of(model, "cluster.num_nodes=2", num_trainer_gpus=16, num_engines=16, tensor_parallel=2)
    assert (flags["--actor-num-nodes"], flags["--actor-num-gpus-per-node"]) == ("2", "8")
    assert flags["--tensor-model-parallel-size"] == "2" and "--sequence-parallel" in flags


def test_a_reference_model_only_for_a_kl_term(model):
    flags = flags_of(model, "algorithm.kl_coef=0.01", "algorithm.loss_aggregation=sequence")
    assert flags["--kl-loss-coef"] == "0.01" and flags["--kl-loss-type"] == "k3" and "--use-kl-loss" in flags
    assert flags["--ref-load"] == str(model) and flags["--kl-coef"] == "0.0"
    assert "--calculate-per-token-loss" not in flags


def test_a_bound_on_ratios_is_refused_as_slime_has_none(model):
    with pytest.raises(BadInput, match=r"algorithm\.max_importance_ratio asks; got 2\.0\. Set it to 0"):
        flags_of(model, "algorithm.max_importance_ratio=2")
    with pytest.raises(BadInput, match="max_importance_ratio"):
        check_settings(load_config("reference", ["algorithm.max_importance_ratio=2"]))


def test_without_transformer_engine(model):
    flags = flags_of(model, has_transformer_engine=False, sglang_flags=("--sglang-attention-backend", "triton"))
    assert flags["--transformer-impl"] == "local" and flags["--spec"] == "actors.trainers.megatron_spec get_spec"
    assert sum(name.startswith("--no-") and name.endswith("-fusion") for name in flags) == 5
    assert flags["--sglang-attention-backend"] == "triton" and "--attention-backend" not in flags


def test_recompute(model):
    flags = flags_of(model, "trainer.recompute=true")
    said = [flags[f"--recompute-{part}"] for part in ("granularity", "method", "num-layers")]
    assert said == ["full", "uniform", "1"]


@pytest.mark.parametrize(("settings", "changes"), [
    ((), {"num_trainer_gpus": 3}),
    ((), {"num_trainer_gpus": 8, "tensor_parallel": 3}),
    (("rollout.groups_per_step=6", "rollout.group_size=2"), {}),
])
def test_a_batch_that_megatron_could_not_divide(model, settings, changes):
    with pytest.raises(BadInput, match="divide evenly"):
        flags_of(model, *settings, **changes)


def parse_args():
    """Like slime: several parsers, each passing over what it does not know; one value is changed by a rule."""
    mode = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    mode.add_argument("--train-backend", default="megatron")
    engine = argparse.ArgumentParser(add_help=False)
    engine.add_argument("--sglang-mem-fraction-static", type=float, default=0.9)
    main = argparse.ArgumentParser(add_help=False)
    main.add_argument("--rollout-batch-size", type=int, required=True)
    main.add_argument("--lr", type=float, default=1e-6)
    main.add_argument("--attention-backend", type=str.upper, default="AUTO")
    main.add_argument("--spec", nargs="*", default=None)
    main.add_argument("--swiglu", action="store_true")
    main.add_argument("--no-rope-fusion", action="store_false", dest="apply_rope_fusion")
    main.add_argument("--offload-train", action=argparse.BooleanOptionalAction)
    main.add_argument("--load", default=None)
    args, *others = [parser.parse_known_args()[0] for parser in (main, mode, engine)]
    for other in others:
        vars(args).update(vars(other))
    if args.load == "/nowhere":
        args.load = None
    if args.lr <= 0:
        raise AssertionError
    return args


@pytest.fixture
def slime(monkeypatch):
    """A package `slime` that only has this parser."""
    for name in ("slime", "slime.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    module = types.ModuleType("slime.utils.arguments")
    module.parse_args = parse_args
    monkeypatch.setitem(sys.modules, "slime.utils.arguments", module)


GOOD = ["--rollout-batch-size", "4", "--lr", "2e-6", "--attention-backend", "flash", "--spec", "my.module", "get_spec",
        "--swiglu", "--no-rope-fusion", "--no-offload-train", "--sglang-mem-fraction-static", "0.4"]  # fmt: skip


def test_every_value_arrives(slime):
    before, argv = sys.argv, list(sys.argv)
    args = parse_flags(GOOD)
    assert (args.rollout_batch_size, args.lr, args.attention_backend) == (4, 2e-6, "FLASH")
    assert (args.swiglu, args.apply_rope_fusion, args.offload_train) == (True, False, False)
    assert args.spec == ["my.module", "get_spec"] and args.sglang_mem_fraction_static == 0.4
    assert sys.argv is before and sys.argv == argv


@pytest.mark.parametrize(("extra", "said"), [
    (["--swiglou"], "Did you mean --swiglu"),
    (["--attention-back", "flash"], "Did you mean --attention-backend"),  # argparse takes it for an abbreviation
    (["--sglang-mem-fraction", "0.5"], "--sglang-mem-fraction'"),
    (["--zzz"], "must be known"),
    (["--load", "/nowhere"], "load is None"),
    (["--lr", "-1"], "raise AssertionError"),
    (["--lr", "fast"], "invalid float value: 'fast'"),
])
def test_what_slime_would_pass_over_is_named(slime, extra, said):
    with pytest.raises(BadInput) as refusal:
        parse_flags([*GOOD, *extra])
    assert said in str(refusal.value)


def test_a_missing_flag_does_not_end_the_process(slime):
    with pytest.raises(BadInput, match="--rollout-batch-size"):
        parse_flags([])
    with pytest.raises(SystemExit):  # argparse is itself again
        argparse.ArgumentParser().parse_args(["--unknown"])
