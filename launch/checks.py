"""What must be true before the first actor starts; whatever is not ends as BadInput."""

import os
import re
import subprocess
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from launch.placement import Placement, plan_placement
from rlhaiku.config import BUNDLED, RunConfig
from rlhaiku.errors import BadInput
from rlhaiku.ledger.schema import LEDGER_FILE

DRIVER_S = 30.0
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def check_run(config: RunConfig, directory: Path, resume: bool) -> Placement:
    """Everything that can be checked without loading torch; makes the run directory and returns the placement."""
    placement = check_placement(config)
    resolve_model(config.model.path)
    data_directory(config.data.path)
    check_sinks(config)
    check_output(directory, resume)
    return placement


def check_placement(config: RunConfig) -> Placement:
    """Where the actors go on this machine; raises BadInput if they cannot."""
    check_backends(config)
    return plan_placement(config, available_cores())


def available_cores() -> int:
    """Cores this process may use; a container or `taskset` may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_gpus() -> int:
    """NVIDIA GPUs of this machine, as its driver counts them."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=DRIVER_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


def check_backends(config: RunConfig) -> None:
    """The torch trainer with torch engines, on CPUs or one GPU, or with vLLM on one GPU; what that needs must exist."""
    engine, backend, gpus = config.rollout.engine, config.trainer.backend, config.cluster.gpus_per_node
    if engine == "sglang" or backend != "torch":
        raise BadInput(
            "`rlhaiku train` runs rollout.engine=torch or vllm with trainer.backend=torch",
            f"{engine} with {backend}",
            "Use --preset laptop or --preset one-gpu.",
        )
    if gpus > 1 or (engine == "vllm" and not gpus):
        rule = f"rollout.engine={engine} and its trainer share one GPU{'' if engine == 'vllm' else ' or run on CPUs'}"
        raise BadInput(rule, f"{gpus} GPUs a node", "Set cluster.gpus_per_node=1.")
    if gpus and not available_gpus():
        raise BadInput("cluster.gpus_per_node=1 needs an NVIDIA GPU", "nvidia-smi finds none", "Use --preset laptop.")
    if engine == "vllm" and find_spec("vllm") is None:
        remedy = "pip install 'rlhaiku[local,vllm]', or set rollout.engine=torch."
        raise BadInput("rollout.engine=vllm needs vLLM", "not installed", remedy)


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
            remedy = f"Install it with: pip install 'rlhaiku[{package}]'"
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
    if resume and not (directory / "config.toml").exists():
        raise BadInput("--resume needs a run directory", str(directory), "Start it without --resume.")
    if not resume and any((directory / name).exists() for name in ("metrics.jsonl", LEDGER_FILE)):
        raise BadInput("--output-dir must not hold another run", str(directory), "Add --resume, or choose a new name.")


def _asset(name: str) -> Path:
    return Path(str(resources.files("rlhaiku").joinpath("assets", name)))
