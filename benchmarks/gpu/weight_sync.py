"""A weight sync on one GPU, from a finished optimizer step to the first token of the new version, against a copy of as
many bytes on the device.

    python -m benchmarks.gpu.weight_sync [--smoke] [--output FILE] [--force]
"""

import tempfile
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import ray
import torch

from actors.actor import Actor
from actors.crew import Crew
from actors.engines.vllm_engine import VllmEngine, VllmSpec
from actors.trainers.torch_trainer import TorchTrainer, TrainerSpec
from actors.weight_sync import SharedMemorySync
from benchmarks.gpu.roofline import measure_roofline
from benchmarks.gpu.shapes import qwen3
from benchmarks.measure import Paired, paired, standard_main
from benchmarks.models import request
from launch.ray_runtime import local_ray
from rlhaiku.config import AlgorithmConfig, load_config

TIMEOUT_S = 400.0


def measure_model(size: str, scratch: Path, pairs: int) -> list[Paired]:
    """Real actors of a run: a trainer and a vLLM engine, each with half of the card."""
    model, weights = qwen3(scratch / "model", size, weights=True), scratch / "weights"
    spec = TrainerSpec(str(model), weights, 2, 100, load_config("one-gpu").trainer, AlgorithmConfig(), "cuda")
    options = (("enforce_eager", True), ("kv_cache_memory_bytes", 2 << 30))
    engine_spec = VllmSpec(str(model), weights, 2, 0, 16, 16, options=options)
    trainer = Actor("the trainer", ray.remote(num_cpus=1, num_gpus=0.5)(TorchTrainer).remote(spec))
    engine = ray.remote(num_cpus=1, num_gpus=0.5, concurrency_groups={"control": 1})(VllmEngine)
    crew = Crew("rollout engine", lambda place: engine.remote(engine_spec), 1)
    sync, versions = SharedMemorySync(trainer, crew, [], TIMEOUT_S), count()

    def publish() -> None:
        version = next(versions)
        started = time.perf_counter()
        report = sync.publish(version)
        published = time.perf_counter()
        asked = request(version, prompt_tokens=4, max_tokens=1, group_size=2, version=version)
        ray.get(crew.actors[0].handle.generate.remote([asked]), timeout=TIMEOUT_S)
        print(f"    published {1000 * (published - started):.1f} ms, loaded and one token "
              f"{1000 * (time.perf_counter() - published):.1f} ms, {report.num_bytes / 1e9:.2f} GB")

    publish()
    num_bytes = 2 * sum(p.numel() for p in _shape(model).parameters())
    source = torch.empty(num_bytes, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    result = paired(f"weight sync, Qwen3-{size} shape: copy on the device / sync until the first token", copy, publish,
                    pairs=pairs, goal=1 / 20, note=f"{num_bytes / 1e9:.2f} GB; checksum verified twice")
    for actor in (trainer, *crew.actors):
        ray.kill(actor.handle)
    return [result]


def _shape(model: Path) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))


def measure(smoke: bool) -> list[Paired]:
    """Qwen3-4B's shape: without a train step its optimizer takes no memory."""
    line = measure_roofline()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name, local_ray(3, 1):
        results = measure_model("0.6B" if smoke else "4B", Path(name), 3 if smoke else 9)
    return [replace(each, note=f"{each.note}; {line}") for each in results]


if __name__ == "__main__":
    standard_main(__doc__, measure)
