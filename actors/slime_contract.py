"""Whether the installed slime is the one this project is written against, seen before anything is started with it.

slime has no stable interface: the length of a tuple and the arguments of a call have changed between its images. Here
its source is read, not imported, so the answer takes a moment and needs neither a GPU nor SGLang.
"""

import ast
import json
import logging
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from actors.registry import Registry
from actors.slime_pin import SLIME_COMMIT, SLIME_IMAGE
from rlhaiku.errors import BadInput

NEEDED = ("slime", "megatron.core", "megatron.training", "sglang")
ANSWER = (
    "rollout_engines", "rollout_engine_lock", "num_new_engines",
    "engine_gpu_counts", "engine_gpu_offsets", "engine_parallel_configs",
)  # fmt: skip
"""What a trainer unpacks from `Registry.get_updatable_engines_and_lock`."""

TRAINER = "backends/megatron_utils/actor.py"
ENGINE = "backends/sglang_utils/sglang_engine.py"
CONNECT = ("self", *(name for name in ANSWER if name != "num_new_engines"))
UPDATER = ("self", "args", "model", "weights_getter", "model_name", "quantization_config")
CALLS: dict[str, dict[str, tuple[str, ...]]] = {
    TRAINER: {
        "MegatronTrainRayActor.init": ("self", "args", "role", "with_ref"),
        "MegatronTrainRayActor.train": ("self", "rollout_id", "rollout_data_ref"),
        "MegatronTrainRayActor.save_model": ("self", "rollout_id", "force_sync"),
        "MegatronTrainRayActor.update_weights": ("self",),
    },
    "backends/megatron_utils/checkpoint.py": {
        "load_checkpoint": (
            "ddp_model", "optimizer", "opt_param_scheduler", "checkpointing_context", "skip_load_to_model_and_opt",
        ),
    },
    "backends/megatron_utils/megatron_to_hf/__init__.py": {
        "convert_to_hf": ("args", "model_name", "name", "param"),
    },
    "backends/megatron_utils/update_weight/common.py": {
        "all_gather_param": ("name", "param"),
        "named_params_and_buffers": ("args", "model"),
    },
    "observability/logging_utils.py": {"log": ("args", "metrics", "step_key")},
    "ray/train_actor.py": {
        "TrainRayActor.__init__": ("self", "world_size", "rank", "master_addr", "master_port"),
        "TrainRayActor.set_rollout_manager": ("self", "rollout_manager"),
    },
    "ray/ray_actor.py": {
        "RayActor.get_master_addr_and_port": ("self",),
        "RayActor._get_current_node_ip_and_free_port": ("start_port", "consecutive"),
    },
    "ray/utils.py": {"add_default_ray_env_vars": ("env_vars",), "Lock.acquire": ("self",), "Lock.release": ("self",)},
    "backends/megatron_utils/update_weight/update_weight_from_tensor.py": {
        "UpdateWeightFromTensor.connect_rollout_engines": CONNECT,
        "UpdateWeightFromTensor.__init__": UPDATER,
    },
    "backends/megatron_utils/update_weight/update_weight_from_distributed.py": {
        "UpdateWeightFromDistributed.connect_rollout_engines": CONNECT,
        "UpdateWeightFromDistributed.__init__": UPDATER,
    },
    ENGINE: {
        "SGLangEngine.__init__": ("self", "args", "rank", "worker_type", "base_gpu_id", "sglang_overrides"),
        "SGLangEngine.init": ("self", "dist_init_addr", "port", "nccl_port", "host"),
        "SGLangEngine.get_url": ("self",),
        "SGLangEngine.get_weight_version": ("self",),
        "SGLangEngine.health_generate": ("self", "timeout"),
        "SGLangEngine.flush_cache": ("self",),
        "SGLangEngine.pause_generation": ("self",),
        "SGLangEngine.continue_generation": ("self",),
        "SGLangEngine.check_weights": ("self", "action"),
        "SGLangEngine.shutdown": ("self",),
        "SGLangEngine.update_weights_from_tensor": ("self", "serialized_named_tensors", "load_format"),
        "SGLangEngine.update_weights_from_distributed": ("self", "names", "dtypes", "shapes", "group_name"),
        "SGLangEngine.init_weights_update_group": (
            "self", "master_address", "master_port", "rank_offset", "world_size", "group_name", "backend",
        ),
        "SGLangEngine.destroy_weights_update_group": ("self", "group_name"),
    },
    "utils/arguments.py": {"parse_args": ()},
    "utils/dp_schedule.py": {
        "build_dp_schedule": (
            "args", "train_parallel_config", "total_lengths", "global_batch_size", "rollout_indices",
        ),
    },
    "observability/rollout_data_utils.py": {"tensorize_rollout_data_for_training": ("rollout_data",)},
    "utils/misc.py": {"Box.__init__": ("self", "inner")},
}  # fmt: skip
"""By file and function: the arguments we give, in order. More are fine if they have defaults."""
ATTRIBUTES: dict[str, dict[str, tuple[str, ...]]] = {
    TRAINER: {
        "MegatronTrainRayActor.init": (
            "model", "optimizer", "opt_param_scheduler", "weights_backuper", "weight_updater",
        ),
    },
    **{
        f"backends/megatron_utils/update_weight/update_weight_from_{kind.lower()}.py": {
            f"UpdateWeightFrom{kind}.__init__": ("weight_version", "model_name"),
        }
        for kind in ("Tensor", "Distributed")
    },
}  # fmt: skip
"""By file and method: what it sets on itself that we read or set."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def check_slime() -> None:
    """Raises BadInput, naming every difference, unless slime is installed and keeps the contract.

    A commit other than the one of `slime_pin.py` is fine if nothing differs; it is mentioned.
    """
    missing = [name for name in NEEDED if not _is_there(name)]
    if missing:
        remedy = f"Use the image {SLIME_IMAGE.partition('@')[0]}, or put slime and Megatron on PYTHONPATH."
        raise BadInput("the Megatron trainer needs slime, Megatron and SGLang", f"no {', no '.join(missing)}", remedy)
    root = _source_root()
    if differences := list(contract_differences(root)):
        said = f"slime {commit_of(root) or 'of unknown commit'}: {'; '.join(differences)}"
        raise BadInput("the installed slime must keep the contract", said, f"Check out its commit {SLIME_COMMIT}.")
    if (commit := commit_of(root)) != SLIME_COMMIT:
        logging.getLogger(__name__).warning(
            "slime is at %s, not at the commit it was tested at, %s; what can be read of it is as needed",
            commit or "an unknown commit", SLIME_COMMIT,
        )  # fmt: skip


def contract_differences(root: Path) -> Iterator[str]:
    """What is not as this project needs it in the slime package at `root`, in words."""
    for file, calls in CALLS.items():
        if not (root / file).is_file():
            yield f"{file} is not there"
            continue
        tree = ast.parse((root / file).read_text(encoding="utf-8"))
        yield from _callback_differences(tree)
        functions = dict(_functions(tree))
        for name, expected in calls.items():
            if name not in functions:
                yield f"{file} has no {name}"
            elif lacking := _not_set(functions[name], ATTRIBUTES.get(file, {}).get(name, ())):
                yield f"{name} does not set {', '.join(lacking)}"
            elif not _takes(functions[name], expected):
                yield f"{name} takes ({', '.join(_parameters(functions[name]))}), not ({', '.join(expected)})"


def commit_of(root: Path) -> str | None:
    """Git commit of the slime package at `root`: of its checkout, or as pip noted it; None if neither says."""
    head = root.parent / ".git" / "HEAD"
    if head.is_file():
        said = head.read_text(encoding="utf-8").strip()
        ref = head.parent / said.removeprefix("ref: ")
        return said if not said.startswith("ref: ") else ref.read_text().strip() if ref.is_file() else None
    try:
        noted = metadata.distribution("slime").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    return json.loads(noted or "{}").get("vcs_info", {}).get("commit_id")  # type: ignore[no-any-return]


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False


def _source_root() -> Path:
    """Of the places where Python looks for slime, the one that has its files: a folder of that name is no slime."""
    spec = find_spec("slime")
    assert spec and spec.submodule_search_locations
    places = [Path(place) for place in spec.submodule_search_locations]
    return next((place for place in places if (place / TRAINER).is_file()), places[0])


def _callback_differences(tree: ast.Module) -> Iterator[str]:
    """What a trainer asks of its rollout manager beyond what the registry has, and how it unpacks the answer."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            is_callback = ast.unparse(node.value) == "self.rollout_manager"
            if is_callback and not hasattr(Registry, node.attr):
                yield f"trainers call {node.attr}, which actors/registry.py does not have"
        elif isinstance(node, ast.Assign) and "get_updatable_engines_and_lock" in ast.unparse(node.value):
            names = ast.unparse(node.targets[0]).strip("()")
            if names != ", ".join(ANSWER):
                yield f"trainers unpack ({names}) from the registry, not ({', '.join(ANSWER)})"


def _functions(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """Functions of a module, and methods as `Class.method`."""
    for node in tree.body:
        if isinstance(node, Function):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{item.name}", item) for item in node.body if isinstance(item, Function))


def _not_set(function: Function, expected: tuple[str, ...]) -> list[str]:
    """Attributes that a method does not assign to itself."""
    is_set = {
        node.attr for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }  # fmt: skip
    return [name for name in expected if name not in is_set]


def _parameters(function: Function) -> list[str]:
    arguments = function.args
    return [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]


def _takes(function: Function, expected: tuple[str, ...]) -> bool:
    arguments, names = function.args, _parameters(function)
    num_positional = len(names) - len(arguments.kwonlyargs)
    required = num_positional - len(arguments.defaults)
    needs_more = len(expected) < required or any(
        default is None and each.arg not in expected
        for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    )
    return tuple(names[: len(expected)]) == expected and not needs_more
