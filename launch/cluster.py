"""rlhaiku on Modal.

    modal run launch/cluster.py                                   # everything: Qwen3-4B on 8xH100
    modal run launch/cluster.py --stage train --steps 10 --run first
    modal run launch/cluster.py --stage train --run first --resume
    modal run -d launch/cluster.py::train --preset reference      # one function by name; -d: it outlives your terminal

`rlhaiku plan` says beforehand what this asks for and what it will cost. The machines come from RLHAIKU_GPU (`H100:8`),
RLHAIKU_NODES (1) and RLHAIKU_TIMEOUT_S (24 h). HF_TOKEN, WANDB_API_KEY, RAY_AUTH_TOKEN and the judge's variables go
along when they are set where you type this; RLHAIKU_SECRETS names Modal secrets, comma-separated, `NAME` or
`NAME=KEY+KEY` with what is in it. RLHAIKU_DASHBOARD=1 forwards Ray's dashboard. Exit status: 0 done, 1 the run failed,
2 bad input.
"""

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import modal

from actors.slime_pin import CHECK_OUT_SLIME, PUT_SLIME_ON_PATH
from launch.resources import MAX_RETRIES, PINS, Resources, local_secrets

if TYPE_CHECKING:
    from launch.cluster_run import Order

RESOURCES = Resources.from_environment()
PATHS = RESOURCES.paths
LOCAL_RUNS = Path("/tmp/rlhaiku-runs")
HOUR_S = 3600

image = (
    modal.Image.from_registry(RESOURCES.image)
    .entrypoint([])
    .run_commands(CHECK_OUT_SLIME, PUT_SLIME_ON_PATH)
    .uv_pip_install(*PINS, uv_version="0.9.7")
    .env(RESOURCES.environment)
    # Everything of the packages: presets, the syllable table and the embedded prompts are not Python files.
    .add_local_python_source("rlhaiku", "actors", "launch", ignore=["**/__pycache__/**"])
)
app = modal.App("rlhaiku", image=image)

volumes = {str(path): modal.Volume.from_name(name, create_if_missing=True) for name, path in PATHS.volumes.items()}
secrets = [
    modal.Secret.from_dict(dict(local_secrets())),
    *(modal.Secret.from_name(name, required_keys=keys) for name, keys in RESOURCES.named_secrets.items()),
]


@app.function(volumes=volumes, secrets=secrets, timeout=2 * HOUR_S)
def download_model(preset: str = "reference", settings: str = "") -> None:
    """Puts the weights into the Hugging Face cache, so that no GPU waits for them."""
    from launch.checks import HUB_ID, resolve_model
    from rlhaiku.config import load_config

    model = resolve_model(load_config(preset, shlex.split(settings)).model.path)
    if not HUB_ID.fullmatch(model):
        print(f"{model} is here already: nothing to download")
        return
    from huggingface_hub import snapshot_download

    print(f"{model} is in {snapshot_download(model)}")
    volumes[str(PATHS.hf_cache)].commit()


@app.function(volumes=volumes, secrets=secrets, timeout=2 * HOUR_S)
def prepare_dataset(source: str = "statworx/haiku", split: Literal["topics", "tutorial"] = "topics") -> None:
    """Writes train.parquet, test.parquet and manifest.json; see `rlhaiku prepare`."""
    from rlhaiku.haiku.statworx import prepare

    manifest = prepare(PATHS.data_set(source, split), source, split)
    volumes[str(PATHS.data)].commit()
    print(manifest.to_dict())


@app.function(secrets=secrets)
def convert_checkpoint(preset: str = "reference", settings: str = "") -> None:
    """Where a trainer cannot read Hugging Face directories, this is where they would be converted; all of ours can."""
    from rlhaiku.config import load_config

    backend = load_config(preset, shlex.split(settings)).trainer.backend
    print(f"the {backend} trainer reads and writes Hugging Face directories: nothing to convert")


def _clustered(function: Callable[..., Any]) -> Any:  # noqa: ANN401  (what Modal's decorators take)
    return modal.clustered(size=RESOURCES.nodes, rdma=True)(function) if RESOURCES.is_clustered else function


@app.function(
    gpu=RESOURCES.gpu or None,
    volumes=volumes,
    secrets=secrets,
    timeout=RESOURCES.timeout_s,
    retries=modal.Retries(max_retries=MAX_RETRIES, initial_delay=0.0),
)
@_clustered
def train(
    preset: str = "reference",
    settings: str = "",
    run: str = "",
    resume: bool = False,
    own: str = "",
    source: str = "statworx/haiku",
    split: str = "topics",
) -> dict[str, Any]:
    """One run. Every attempt, first or not, goes on from what the volume has.

    `run`: its name on the volume; `own`: `by_value(reward=..., rubric=...)`; `source`, `split`: which of the prepared
    data sets, if this begins a run. What a retry cannot help comes back as a value, and is printed: whoever calls this
    from Python raises it with `cluster_run.summary_of`.
    """
    from launch.cluster_run import FINAL, Order, as_value

    stop_at = time.monotonic() + RESOURCES.stop_after_s
    try:
        return _attempt(Order(preset, settings, run, resume, own, source, split), stop_at)
    except FINAL as error:
        return as_value(error)


def _attempt(order: "Order", stop_at: float) -> dict[str, Any]:
    """The body of `train`: everything that can be checked is checked before Ray starts. Ends by itself at `stop_at`."""
    from launch.ray_cluster import ModalRayCluster, Place, set_environment

    set_environment(RESOURCES.has_dashboard)  # first: Ray is imported by whatever follows
    from launch.checks import check_placement
    from launch.cluster_run import run_kept
    from launch.run_volume import RunVolume
    from rlhaiku.errors import RunFailed

    place = Place.discover(RESOURCES.nodes)
    volume = volumes[str(PATHS.runs)]
    volume.reload()
    runs, call_id = RunVolume(PATHS.runs, LOCAL_RUNS, volume.commit), modal.current_function_call_id() or ""
    earlier = runs.earlier(order.run, call_id, order.resume)
    config = order.config(earlier, RESOURCES)
    sizes = (check_placement(config).total_cpus, RESOURCES.gpus_per_node)
    if place.rank:
        with ModalRayCluster(place, *sizes) as worker:
            _hold(worker.hold)
    things = order.things(config)
    kept = runs.open(earlier or runs.new(order.run), call_id)

    def is_late() -> bool:
        return time.monotonic() > stop_at

    with ModalRayCluster(place, *sizes, dashboard=RESOURCES.has_dashboard) as cluster, _dashboard():
        from launch.local import Hooks  # not above: it loads torch, which other ranks do without

        result = run_kept(config, kept, things, Hooks(kept.keep, is_late, order.resume_with(kept.remote.name)))
    if not result.finished:
        saved = f"{kept.remote.name} stopped after step {result.state.step} and is saved"
        if why := cluster.lost or ("time is up" if is_late() else ""):
            raise RunFailed(f"{saved}: {why}; a retry goes on")
        raise KeyboardInterrupt(saved)  # as the interrupt itself would have: Modal gives the input to another container
    assert result.comparison is not None
    return {"run": kept.remote.name, "step": result.state.step} | result.comparison.to_dict()


@contextmanager
def _dashboard() -> Iterator[None]:
    """Ray's dashboard at a public address, if somebody asked for it; it wants RAY_AUTH_TOKEN of whoever comes."""
    from launch.ray_cluster import DASHBOARD_PORT, check_dashboard_is_locked

    if not RESOURCES.has_dashboard:
        yield
        return
    check_dashboard_is_locked()
    with modal.forward(DASHBOARD_PORT) as tunnel:
        print(f"dashboard at {tunnel.url}")
        yield


def _hold(watch: Callable[[], None]) -> None:
    """On the other ranks: only rank 0 returns something, and only an exit status shows that a container has failed."""
    from launch.ray_cluster import NodeLost

    try:
        watch()
    except NodeLost as error:
        print(error, flush=True)
        os._exit(1)


@app.local_entrypoint()
def main(
    stage: Literal["all", "download", "prepare", "convert", "train"] = "all",
    preset: str = "reference",
    steps: int | None = None,
    resume: bool = False,
    run: str = "",
    source: Literal["statworx/haiku", "statworx/haiku:tutorial", "embedded"] = "statworx/haiku",
    settings: str = "",
) -> None:
    """One stage or all; `--settings 'rollout.group_size=16 trainer.lr=2e-6'` changes any of `rlhaiku settings`.

    `--source`: the prompts; `:tutorial` splits them as the tutorial did, by row, and not by topic.
    """
    from launch.cluster_run import Order, summary_of
    from rlhaiku.errors import BadInput, RlhaikuError

    if steps:
        settings += f" num_steps={steps}"
    prompts, _, split = source.partition(":")
    order = Order(preset, settings, run, resume, "", prompts, split or "topics")
    try:
        if stage in ("all", "train") and not resume:  # what a resumed run needs, only the volume knows
            order.config(None, RESOURCES)  # before anything is paid for
        if stage in ("all", "download"):
            download_model.remote(preset, settings)
        if stage in ("all", "prepare"):
            prepare_dataset.remote(order.source, order.split)
        if stage in ("all", "convert"):
            convert_checkpoint.remote(preset, settings)
        if stage in ("all", "train"):
            summary = summary_of(train.remote(**asdict(order)))
            print(f"run {summary['run']}: structure {summary['base']['structure_mean']:.3f} -> "
                  f"{summary['trained']['structure_mean']:.3f}; serve it with `modal deploy launch/serve.py`")
    except RlhaikuError as error:
        print(f"error {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, BadInput) else 1) from None
