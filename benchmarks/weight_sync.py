"""A weight sync, from asking the trainer to the last engine's confirmation, against copying as many bytes.

    python -m benchmarks.weight_sync [--smoke] [--output FILE] [--force]
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median

import ray
import torch

from actors.actor import Actor
from actors.crew import Crew
from actors.engines.torch_engine import TorchEngine
from actors.trainers.torch_trainer import TorchTrainer, TrainerSpec
from actors.weight_sync import SharedMemorySync
from benchmarks.measure import Paired, paired, standard_main
from benchmarks.models import bundled, smollm2_shape
from benchmarks.rollout_throughput import engine_spec
from launch.ray_runtime import local_ray
from rlhaiku.config import AlgorithmConfig, load_config

ENGINES = 2
TIMEOUT_S = 300.0


def measure_model(name: str, model: Path, scratch: Path, pairs: int) -> Paired:
    """Real actors; the baseline is one memcpy of the payload in this process."""
    weights = scratch / f"weights-{model.name}"
    spec = TrainerSpec(str(model), weights, 2, 100, load_config("laptop").trainer, AlgorithmConfig())
    trainer = Actor("the trainer", ray.remote(num_cpus=1)(TorchTrainer).remote(spec))
    ray.get(trainer.handle.send_weights.remote(0), timeout=TIMEOUT_S)
    crew = Crew(
        "rollout engine",
        lambda place: ray.remote(num_cpus=1, concurrency_groups={"control": 1})(TorchEngine).remote(
            engine_spec(model, weights, threads=1, tile_groups=8)
        ),
        ENGINES,
    )
    sync, versions = SharedMemorySync(trainer, crew, [0], TIMEOUT_S), count(1)
    num_bytes = sync.publish(next(versions)).num_bytes
    source = torch.rand(num_bytes // 4)
    target = torch.empty_like(source)
    result = paired(
        f"weight sync, {name}: memcpy of {num_bytes / 1e6:.0f} MB / sync of {ENGINES} engines",
        lambda: target.copy_(source), lambda: sync.publish(next(versions)),
        pairs=pairs, goal=1 / 3, note="checksums verified on every engine",
    )
    rate = num_bytes / median(result.baseline_s) / 1e9
    result = replace(result, bound=f"memcpy {rate:.1f} GB/s")
    for actor in (trainer, *crew.actors):
        ray.kill(actor.handle)
    return result


def measure(smoke: bool) -> Iterator[Paired]:
    """The bundled model, and the 135M shape."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name, local_ray(ENGINES + 1):
        scratch = Path(name)
        yield measure_model("bundled", bundled(), scratch, 2 if smoke else 9)
        if not smoke:
            yield measure_model("135M", smollm2_shape(scratch / "model"), scratch, 7)


if __name__ == "__main__":
    standard_main(__doc__, measure)
