"""rlhaiku on Modal.

    modal run launch/cluster.py                                   # everything: Qwen3-4B on 8xH100
    modal run launch/cluster.py --stage train --steps 10 --run first
    modal run launch/cluster.py --stage train --run first --resume
    modal run -d launch/cluster.py::train --preset reference      # one function by name; -d: it outlives your terminal

`rlhaiku plan` says beforehand what this asks for and what it will cost. The machines come from RLHAIKU_GPU (`H100:8`),
RLHAIKU_NODES (1), RLHAIKU_TIMEOUT_S (24 h) and RLHAIKU_SECRETS (names of Modal secrets). HF_TOKEN, RAY_AUTH_TOKEN and
the judge's variables go along when they are set where you type this. RLHAIKU_DASHBOARD=1 forwards Ray's dashboard.
"""

import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import modal

from actors.slime_pin import CHECK_OUT_SLIME, PUT_SLIME_ON_PATH
from launch.resources import MAX_RETRIES, PINS, Resources, local_secrets

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
secrets = [modal.Secret.from_dict(dict(local_secrets())), *(modal.Secret.from_name(name) for name in RESOURCES.secrets)]


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


@app.function(
    gpu=RESOURCES.gpu or None,
    volumes=volumes,
    secrets=secrets,
    timeout=RESOURCES.timeout_s,
    retries=modal.Retries(max_retries=MAX_RETRIES, initial_delay=0.0),
)
@modal.clustered(size=RESOURCES.nodes, rdma=True)
def train(
    preset: str = "reference", settings: str = "", run: str = "", resume: bool = False, own: str = ""
) -> dict[str, Any]:
    """One run. Every attempt, first or not, goes on from what the volume has.

    `run`: its name on the volume; `own`: `by_value(reward=..., rubric=...)`.
    """
    from launch.by_value import from_value
    from launch.checks import check_placement
    from launch.ray_cluster import ModalRayCluster, Place
    from launch.run_volume import RunVolume
    from rlhaiku.config import load_config, read_config, with_overrides
    from rlhaiku.errors import RunFailed

    stop_at = time.monotonic() + RESOURCES.stop_after_s
    config = load_config(preset, overrides := shlex.split(settings))
    place = Place.discover(RESOURCES.nodes)

    def is_late() -> bool:
        return time.monotonic() > stop_at

    cluster = ModalRayCluster(
        place, check_placement(config).total_cpus, RESOURCES.gpus_per_node, dashboard=RESOURCES.has_dashboard
    )
    with cluster, _dashboard(cluster.is_head and RESOURCES.has_dashboard):
        if not cluster.is_head:
            _hold(cluster.hold)
        volume = volumes[str(PATHS.runs)]
        volume.reload()
        call_id = modal.current_function_call_id() or ""
        kept = RunVolume(PATHS.runs, LOCAL_RUNS, volume.commit).open(run, call_id, resume)
        if kept.has_checkpoint:
            config = with_overrides(read_config(kept.local / "config.toml"), overrides)
        from launch.local import Hooks
        from launch.local import run as run_here
        from launch.report import try_report

        resume_with = f"modal run launch/cluster.py --stage train --preset {preset} --run {kept.remote.name} --resume"
        result = run_here(
            config, output_dir=kept.local, resume=kept.has_checkpoint, hooks=Hooks(kept.keep, is_late, resume_with),
            **from_value(own),
        )
        print(try_report(kept.local))
        kept.keep()
    if not result.finished:
        saved = f"{kept.remote.name} stopped after step {result.state.step} and is saved"
        if why := cluster.lost or ("time is up" if is_late() else ""):
            raise RunFailed(f"{saved}: {why}; a retry goes on")
        raise KeyboardInterrupt(saved)  # as the interrupt itself would have: Modal gives the input to another container
    assert result.comparison is not None
    return {"run": kept.remote.name, "step": result.state.step} | result.comparison.to_dict()


@contextmanager
def _dashboard(is_wanted: bool) -> Iterator[None]:
    """Ray's dashboard at a public address, if somebody asked for it; it wants RAY_AUTH_TOKEN of whoever comes."""
    from launch.ray_cluster import DASHBOARD_PORT

    if not is_wanted:
        yield
        return
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
    source: Literal["statworx/haiku", "embedded"] = "statworx/haiku",
    settings: str = "",
) -> None:
    """One stage or all; `--settings 'rollout.group_size=16 trainer.lr=2e-6'` changes any of `rlhaiku settings`."""
    from launch.checks import check_settings
    from launch.plan import make_plan, refuse
    from rlhaiku.config import load_config
    from rlhaiku.errors import BadInput

    if steps:
        settings += f" num_steps={steps}"
    try:
        config = load_config(preset, shlex.split(settings))
        if stage in ("all", "train"):
            check_settings(config)
            refuse(make_plan(config, RESOURCES))
    except BadInput as error:
        raise SystemExit(f"error {error}") from None  # before anything is paid for
    if stage in ("all", "download"):
        download_model.remote(preset, settings)
    if stage in ("all", "prepare"):
        prepare_dataset.remote(source)
    if stage in ("all", "convert"):
        convert_checkpoint.remote(preset, settings)
    if stage in ("all", "train"):
        settings = f"data.path={PATHS.data_set(source, 'topics')} {settings}"
        summary = train.remote(preset, settings, run, resume)
        print(f"run {summary['run']}: structure {summary['base']['structure_mean']:.3f} -> "
              f"{summary['trained']['structure_mean']:.3f}; serve it with `modal deploy launch/serve.py`")
