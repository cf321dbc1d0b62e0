"""Our flags against slime's and Megatron's own parsers, and against the model scripts that slime ships.

SGLang's parser is real where SGLang is installed; otherwise a parser of the flags used here stands in for it.
"""

import argparse
import json
import subprocess
import sys
import types

import pytest

from actors.trainers.hf_shape import shape_flags
from actors.trainers.slime_arguments import SlimeRun, parse_flags, slime_arguments, slime_flags
from rlhaiku.config import TrainerConfig, load_config
from rlhaiku.errors import BadInput
from tests.actors.qwen3_shapes import QWEN3
from tests.actors.real_slime.source import function_of, slime_root

pytestmark = [pytest.mark.slime, pytest.mark.filterwarnings("ignore")]
SGLANG_FLAGS = ("--sglang-attention-backend", "triton", "--sglang-sampling-backend", "pytorch")


@pytest.mark.parametrize("name", QWEN3)
def test_shapes_are_those_of_slimes_own_scripts(tmp_path, name):
    script = slime_root().parent / "scripts" / "models" / f"{name}.sh"
    if not script.is_file():
        pytest.skip("slime is installed without its scripts")
    command = f'source "{script}"; printf "%s\\n" "${{MODEL_ARGS[@]}}"'
    said = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=30).stdout
    theirs = {}
    for token in said.split():
        if token.startswith("--"):
            theirs[last := token[2:]] = True
        else:
            theirs[last] = float(token) if token[0].isdigit() else token
    assert theirs.pop("use-rotary-position-embeddings")  # the older name of the next
    theirs["position-embedding-type"] = "rope"
    (tmp_path / "config.json").write_text(json.dumps(QWEN3[name]))
    ours = {flag: value for flag, value in shape_flags(tmp_path).items() if value is not False}
    assert ours == theirs


@pytest.fixture
def parsers(monkeypatch):
    """Real parsers, but SGLang's where SGLang is missing; Megatron's needs triton, even without a GPU."""
    pytest.importorskip("megatron.training.arguments", exc_type=ImportError)
    try:
        import slime.backends.sglang_utils.arguments  # noqa: F401
    except ImportError:
        module = types.ModuleType("slime.backends.sglang_utils.arguments")
        module.sglang_parse_args, module.validate_args = _sglang_parse_args, lambda args: None
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.delitem(sys.modules, "slime.utils.arguments", raising=False)


def _sglang_parse_args():
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--sglang-mem-fraction-static", type=float, default=None)
    parser.add_argument("--sglang-attention-backend", default=None)
    parser.add_argument("--sglang-sampling-backend", default=None)
    return parser.parse_known_args()[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tests.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("model"))


def parsed(model, *settings, **changes):
    config = load_config("reference", settings)
    always = {"save": "/ckpt", "save_hf": "/ckpt/{rollout_id}", "num_trainer_gpus": 8, "num_engines": 8}
    return slime_arguments(config, model, SlimeRun(**always | changes))


def test_colocated_and_resident(parsers, model):
    args = parsed(model, has_transformer_engine=False, sglang_flags=SGLANG_FLAGS)
    assert (args.colocate, args.offload_train, args.offload_rollout) == (True, False, False)
    assert (args.world_size, args.rollout_num_gpus, args.global_batch_size) == (8, 8, 1024)
    assert (args.num_layers, args.kv_channels, args.num_query_groups) == (2, 32, 1)
    assert args.spec == ["actors.trainers.megatron_spec", "get_spec"] and args.transformer_impl == "local"
    assert (args.gradient_accumulation_fusion, args.masked_softmax_fusion, args.apply_rope_fusion) == (False,) * 3
    assert args.sglang_attention_backend == "triton" and args.sglang_mem_fraction_static == 0.4
    assert args.bf16 and args.load == str(model)
    assert (args.kl_coef, args.use_kl_loss, args.normalize_advantages) == (0.0, False, False)


@pytest.mark.parametrize(("settings", "changes"), [
    ((), {}),
    (("cluster.colocate=false",), {"num_trainer_gpus": 4, "num_engines": 2, "gpus_per_engine": 2}),
    ((), {"tensor_parallel": 2, "has_transformer_engine": False}),
    (("algorithm.kl_coef=0.01", "algorithm.loss_aggregation=sequence"), {}),
    (("trainer.recompute=true", "trainer.optimizer_steps=2"), {}),
    (("trainer.lr_schedule=linear", "trainer.lr_warmup_steps=5", "rollout.temperature=0.8"), {}),
    (("num_steps=1", "trainer.lr_warmup_steps=3", "cluster.wait_timeout_s=61"), {}),
])
def test_every_value_arrives(parsers, model, settings, changes, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: types.SimpleNamespace(major=9, minor=0))
    args = parsed(model, *settings, **changes)
    assert args.rollout_num_gpus == (4 if "cluster.colocate=false" in settings else 8)
    assert args.use_rollout_logprobs and args.use_distributed_optimizer


def test_a_split_run_offloads_nothing_either(parsers, model):
    args = parsed(model, "cluster.colocate=false", num_trainer_gpus=4, num_engines=4)
    assert (args.colocate, args.offload_train, args.offload_rollout, args.world_size) == (False, False, False, 4)


def test_a_misspelt_flag_is_named(parsers, model):
    flags = slime_flags(load_config("reference"), model, SlimeRun("/ckpt", "/hf", 8, 8))
    with pytest.raises(BadInput, match="Did you mean --eps-clip-high"):
        parse_flags([*flags, "--eps-clip-hi", "0.3"])


def test_a_wrong_shape_is_named(parsers, model):
    flags = slime_flags(load_config("reference"), model, SlimeRun("/ckpt", "/hf", 8, 8))
    flags[flags.index("--rotary-base") + 1] = "5000000"
    with pytest.raises(BadInput, match="rotary_base 5000000"):
        parse_flags(flags)


def test_a_model_that_slime_cannot_load_is_named(parsers, model, tmp_path):
    """slime then quietly takes `--ref-load` instead."""
    flags = slime_flags(load_config("reference"), model, SlimeRun("/ckpt", "/hf", 8, 8))
    flags[flags.index("--load") + 1] = str(tmp_path / "nothing")
    with pytest.raises(BadInput, match="load is None"):
        parse_flags(flags)


@pytest.mark.parametrize("settings", [
    ("trainer.lr_schedule=constant",),
    ("trainer.lr_schedule=constant", "trainer.lr_warmup_steps=4"),
    ("trainer.lr_schedule=linear",),
    ("trainer.lr_schedule=linear", "trainer.lr_warmup_steps=4", "trainer.optimizer_steps=2"),
])
def test_the_learning_rate_is_the_torch_trainers(parsers, model, settings):
    """slime's scheduler, stepped as its trainer steps it, at the first optimizer step of each train step."""
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    from actors.trainers.torch_trainer import learning_rate

    class Optimizer:
        param_groups = ({},)

    num_steps = 12
    args = parsed(model, f"num_steps={num_steps}", *settings)
    config: TrainerConfig = load_config("reference", settings).trainer
    make = function_of(
        "backends/megatron_utils/model.py", "get_optimizer_param_scheduler",
        {"OptimizerParamScheduler": OptimizerParamScheduler},
    )
    scheduler = make(args, Optimizer())
    for step in range(num_steps):
        assert scheduler.get_lr({}) == pytest.approx(learning_rate(step, num_steps, config), rel=1e-6)
        scheduler.step(increment=args.global_batch_size * config.optimizer_steps)
