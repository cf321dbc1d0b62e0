"""A weight sync on one GPU, from a finished optimizer step to the first token of the new version, against a copy of as
many bytes on the device.

    python -m benchmarks.gpu.weight_sync [--engines torch,vllm] [--smoke] [--output FILE] [--force]
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import ray
import torch

from actors.actor import Actor
from actors.crew import Crew
from actors.engines.gpu_torch_engine import GpuTorchEngine
from actors.engines.torch_engine import EngineSpec, TorchEngine
from actors.engines.vllm_engine import VllmEngine, VllmSpec
from actors.trainers.torch_trainer import TorchTrainer, TrainerSpec
from actors.weight_sync import SharedMemorySync
from benchmarks.gpu.roofline import DEVICE, measure_roofline, wait_for_device
from benchmarks.gpu.shapes import SMOKE, qwen3
from benchmarks.measure import Paired, paired, standard_main
from benchmarks.models import request
from launch.ray_runtime import local_ray
from rlhaiku.config import AlgorithmConfig, load_config

TIMEOUT_S = 400.0
GRAPHS = {"cudagraph_capture_sizes": [1, 2, 4, 8]}
"""The first token of two completions of a prompt of 4 tokens must not run without a graph, as it would not in a run."""


def engine_of(kind: str, model: Path, weights: Path) -> tuple[type, object]:
    """The class of a rollout engine and its spec, with room for a few completions."""
    if kind == "torch":
        return GpuTorchEngine if DEVICE == "cuda" else TorchEngine, EngineSpec(str(model), weights, 1, 1, 1, 0, True)
    options = (("compilation_config", GRAPHS), ("kv_cache_memory_bytes", 2 << 30))
    return VllmEngine, VllmSpec(str(model), weights, 1, 0, 16, 16, options=options)


@contextmanager
def actors(kind: str, model: Path, scratch: Path) -> Iterator[tuple[Actor, Crew]]:
    """A run's trainer and one engine, each with half of the card."""
    weights, share = scratch / f"weights-{kind}", 0.5 if DEVICE == "cuda" else 0
    spec = TrainerSpec(str(model), weights, 1, 100, load_config("one-gpu").trainer, AlgorithmConfig(), DEVICE)
    cls, engine_spec = engine_of(kind, model, weights)
    trainer = Actor("the trainer", ray.remote(num_cpus=1, num_gpus=share)(TorchTrainer).remote(spec))
    engine = ray.remote(num_cpus=1, num_gpus=share, concurrency_groups={"control": 1})(cls)
    crew = Crew("rollout engine", lambda place: engine.remote(engine_spec), 1)
    try:
        yield trainer, crew
    finally:
        for actor in (trainer, *crew.actors):
            ray.kill(actor.handle)


def measure_engine(kind: str, name: str, model: Path, scratch: Path, pairs: int) -> Paired:
    """A run's own sync and the first token after it, against `copy_` of one flat buffer."""
    with actors(kind, model, scratch) as (trainer, crew):
        sync, versions = SharedMemorySync(trainer, crew, [], TIMEOUT_S), count()
        parts_ms: list[tuple[float, float]] = []

        def publish() -> None:
            version = next(versions)
            started = time.perf_counter()
            sync.publish(version)
            published = time.perf_counter()
            asked = request(version, prompt_tokens=4, max_tokens=1, group_size=2, version=version)
            ray.get(crew.actors[0].handle.generate.remote([asked]), timeout=TIMEOUT_S)
            parts_ms.append((1000 * (published - started), 1000 * (time.perf_counter() - published)))

        publish()
        num_bytes = 2 * sum(p.numel() for p in _shape(model).parameters())
        source = torch.empty(num_bytes, dtype=torch.uint8, device=DEVICE)
        target = torch.empty_like(source)

        def copy() -> None:
            target.copy_(source)
            wait_for_device()

        result = paired(f"weight sync, {name}, {kind} engine: copy on the device / sync until the first token", copy,
                        publish, pairs=pairs, goal=1 / 20, note=f"{num_bytes / 1e9:.2f} GB; checksum verified twice")
    for published, answered in parts_ms:
        print(f"    published {published:.1f} ms, loaded and one token {answered:.1f} ms")
    return result


def _shape(model: Path) -> Any:  # noqa: ANN401  (a transformers model)
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))


def measure(engines: str, smoke: bool) -> Iterator[Paired]:
    """Qwen3-4B's shape: without a train step its optimizer takes no memory."""
    line = measure_roofline()
    size = SMOKE if smoke else "4B"
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, local_ray(3, int(DEVICE == "cuda")):
        model = qwen3(Path(folder) / "model", size, weights=True)
        for kind in engines.split(","):
            found = measure_engine(kind, f"Qwen3-{size} shape", model, Path(folder), 3 if smoke else 9)
            yield replace(found, note=f"{found.note}; {line}")


if __name__ == "__main__":
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--engines", default="torch,vllm")
    chosen, sys.argv[1:] = own.parse_known_args()
    standard_main(__doc__, partial(measure, chosen.engines))
