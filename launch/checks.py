"""What must be true before the first actor starts; whatever is not ends as BadInput."""

import os
import re
import subprocess
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from actors.slime_contract import check_slime
from actors.trainers.slime_arguments import check_algorithm
from launch.placement import GpuPlacement, Placement, is_slime, place_on_cards, plan_gpus, plan_placement
from rlhaiku.config import BUNDLED, RunConfig
from rlhaiku.errors import BadInput
from rlhaiku.ledger.schema import LEDGER_FILE

DRIVER_S = 30.0
INSTALL = ".venv/bin/pip install -e"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def check_run(config: RunConfig, directory: Path, resume: bool) -> Placement | GpuPlacement:
    """Everything that can be checked without loading torch; makes the run directory and returns the placement."""
    placement = check_placement(config)
    resolve_model(config.model.path)
    data_directory(config.data.path)
    check_sinks(config)
    check_output(directory, resume)
    return placement


def check_placement(config: RunConfig) -> Placement | GpuPlacement:
    """Where the actors go on this machine; raises BadInput if they cannot."""
    check_backends(config)
    return plan_gpus(config) if is_slime(config) else plan_placement(config, available_cores())


def available_cores() -> int:
    """Cores this process may use; a container or `taskset` may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_gpus() -> int:
    """NVIDIA GPUs of this machine, as its driver counts them."""
    return sum(line.startswith("GPU ") for line in _ask_driver("-L"))


def gpu_memory_bytes() -> float:
    """Of the smallest GPU, as the driver says; of an H100 if it does not."""
    said = _ask_driver("--query-gpu=memory.total", "--format=csv,noheader,nounits")
    return min((int(line) * 2.0**20 for line in said if line.strip().isdecimal()), default=80e9)


def check_backends(config: RunConfig) -> None:
    """What `check_settings` asks of the settings, and that this machine has the GPUs and packages they need."""
    check_settings(config)
    needed = config.cluster.gpus_per_node
    found = available_gpus() if needed else 0
    if found < needed:
        other = "Use --preset laptop." if needed == 1 else "Use --preset one-gpu, or modal run launch/cluster.py."
        rule = f"cluster.gpus_per_node={needed} needs {'an NVIDIA GPU' if needed == 1 else f'{needed} NVIDIA GPUs'}"
        raise BadInput(rule, f"nvidia-smi finds {found or 'none'}", other)
    if config.rollout.engine == "vllm" and find_spec("vllm") is None:
        remedy = f"{INSTALL} '.[local,gpu,vllm]', or set rollout.engine=torch."
        raise BadInput("rollout.engine=vllm needs vLLM", "not installed", remedy)
    if is_slime(config):
        check_slime()


def check_settings(config: RunConfig) -> None:
    """Which engines, trainers and GPUs go together; true or not wherever the run will be."""
    rollout, cluster = config.rollout, config.cluster
    engine, backend, gpus = rollout.engine, config.trainer.backend, cluster.gpus_per_node
    if (engine == "sglang") != (backend == "megatron"):
        raise BadInput(
            "rollout.engine=sglang goes with trainer.backend=megatron, torch and vllm with trainer.backend=torch",
            f"{engine} with {backend}",
            "Use --preset laptop, one-gpu or reference.",
        )
    if is_slime(config):
        _check_slime_settings(config)
        return
    tensor_parallel = config.trainer.tensor_parallel
    several = {"rollout.gpus_per_engine": rollout.gpus_per_engine, "trainer.tensor_parallel": tensor_parallel}
    for name, count in several.items():
        if count > 1:
            raise BadInput(f"{name} is for Megatron and SGLang", count, f"Set {name}=1, or use --preset reference.")
    if config.cluster.weight_path != "slime":
        rule, remedy = "cluster.weight_path is for Megatron and SGLang", "Set cluster.weight_path=slime."
        raise BadInput(rule, config.cluster.weight_path, remedy)
    if engine == "vllm" and not gpus:
        raise BadInput("rollout.engine=vllm needs GPUs", "0 GPUs a node", "Set cluster.gpus_per_node=1, or more.")
    if gpus:
        place_on_cards(config)


def _check_slime_settings(config: RunConfig) -> None:
    if config.rollout.max_staleness:
        raise BadInput(
            "an SGLang engine holds one version of the weights, so rollout.max_staleness is 0 with it",
            config.rollout.max_staleness,
            "Set rollout.max_staleness=0.",
        )
    if config.cluster.num_nodes > 1:
        raise BadInput(
            "Megatron's ranks write one checkpoint together, so they need one node until they share a file system",
            f"{config.cluster.num_nodes} nodes",
            "Set cluster.num_nodes=1.",
        )
    if config.cluster.weight_path == "slots" and not (config.cluster.colocate and config.rollout.gpus_per_engine == 1):
        raise BadInput(
            "cluster.weight_path=slots needs engines that share their card with a trainer rank, and take one each",
            f"cluster.colocate={config.cluster.colocate}, rollout.gpus_per_engine={config.rollout.gpus_per_engine}",
            "Set cluster.weight_path=slime.",
        )
    check_algorithm(config.algorithm)
    plan_gpus(config)


def _ask_driver(*question: str) -> list[str]:
    """Lines of nvidia-smi's answer; none if there is no driver."""
    try:
        done = subprocess.run(["nvidia-smi", *question], capture_output=True, text=True, timeout=DRIVER_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines()


def resolve_model(path: str) -> str:
    """The directory of a model, or its hub id unchanged."""
    if path == BUNDLED:
        return str(_asset("model"))
    directory = Path(path).expanduser()
    if (directory / "config.json").is_file():
        return str(directory.absolute())  # actors may have started elsewhere
    if directory.exists() or not HUB_ID.fullmatch(path):
        raise BadInput(
            "model.path must be `bundled`, a Hugging Face directory with a config.json, or a hub id like owner/name",
            path,
            "Check the path; a run's own models are in runs/NAME/checkpoints/step-NNNNNN/hf.",
        )
    return path


def data_directory(path: str) -> Path:
    """The directory that holds `train.parquet` and `test.parquet`."""
    directory = _asset("data") if path == BUNDLED else Path(path).expanduser()
    for name in ("train.parquet", "test.parquet"):
        if not (directory / name).is_file():
            raise BadInput(
                f"data.path must be `bundled` or a directory with {name}", path, "Make one with `rlhaiku prepare`."
            )
    return directory


def check_sinks(config: RunConfig) -> None:
    """Raises BadInput if a sink's package is missing, or W&B has no key and is to go online."""
    for sink in config.output.sinks:
        package = sink.partition(":")[0]
        if not find_spec(package):
            remedy = f"Install it with: {INSTALL} '.[{package}]'"
            raise BadInput(f"output.sinks needs the package {package}", sink, remedy)
        offline = os.environ.get("WANDB_MODE") in ("offline", "disabled")
        if package == "wandb" and not offline and not os.environ.get("WANDB_API_KEY"):
            remedy = "Export it, or WANDB_MODE=offline to keep the numbers here."
            raise BadInput("output.sinks: wandb reads its key from the environment", "no WANDB_API_KEY", remedy)


def check_output(directory: Path, resume: bool) -> None:
    """Makes the run directory; raises BadInput if it cannot be written, or holds, or lacks, a run."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadInput("--output-dir must be writable", str(directory), f"{error.strerror}.") from None
    has_settings = (directory / "config.toml").exists()
    has_run = (directory / "metrics.jsonl").exists() or any(directory.glob("checkpoints/step-*"))
    # A ledger alone is no run yet: it is the lock that is taken before the settings are written.
    has_run |= has_settings and (directory / LEDGER_FILE).exists()
    if resume and not has_settings:
        remedy = "Bring its config.toml back." if has_run else "Start it without --resume."
        raise BadInput("--resume needs a run directory", str(directory), remedy)
    if not resume and has_run:
        remedy = f"{'Add --resume' if has_settings else 'Bring its config.toml back'}, or choose a new name."
        raise BadInput("--output-dir must not hold another run", str(directory), remedy)


def _asset(name: str) -> Path:
    return Path(str(resources.files("rlhaiku").joinpath("assets", name)))
