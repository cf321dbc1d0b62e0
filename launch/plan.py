"""What a launch on Modal would do, before it does it: `rlhaiku plan`. Offline, without an account, without torch."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from launch.checks import check_settings, resolve_model
from launch.estimates import (
    GPUS,
    SAVE_S,
    START_S,
    Gpu,
    ModelShape,
    activation_bytes,
    kv_cache_bytes,
    model_shape,
    rollout_s,
    sync_s,
    train_s,
    train_tokens,
    trainer_bytes,
)
from launch.resources import DAY_S, STOP_SHARE, Resources, local_secrets
from rlhaiku.config import RunConfig
from rlhaiku.errors import BadInput

H100_PRICE = 3.95
"""US dollars per GPU hour; Modal's list price when the tutorial was written. `--price` states another."""
PREALLOCATED = 0.7
"""Share of a card that SGLang takes at its start in the tutorial, weights included, needed or not."""


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """One card."""

    node: int
    index: int
    actors: tuple[str, ...]
    gigabytes: Mapping[str, float]
    """What they keep on it, 1 GB being 10^9 bytes."""

    @property
    def total_gb(self) -> float:
        """All of it."""
        return sum(self.gigabytes.values())


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything `rlhaiku plan` says."""

    config: RunConfig
    resources: Resources
    secrets: tuple[str, ...]
    """Names of Modal secrets, and of variables that go along; never a value."""
    parameters: int
    gpus: tuple[GpuPlan, ...]
    gpu_memory_gb: float
    largest_engine_share: float
    """Of a card that an engine may preallocate so that its trainer still fits; 0 without engines beside trainers."""
    seconds: Mapping[str, float]
    """Predicted, by phase of a step, and `step`."""
    run_hours: float
    price_per_gpu_hour: float
    cost: float
    """US dollars for the whole run."""
    refusals: tuple[str, ...]
    """Why it would fail; empty if nothing is known against it."""
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON."""
        resources = self.resources
        return {
            "config": self.config.model_dump(),
            "image": resources.image,
            "gpu": resources.gpu,
            "nodes": resources.nodes,
            "timeout_s": resources.timeout_s,
            "volumes": {name: str(path) for name, path in resources.paths.volumes.items()},
            "secrets": list(self.secrets),
            "parameters": self.parameters,
            "placement": [asdict(gpu) | {"total_gb": gpu.total_gb} for gpu in self.gpus],
            "gpu_memory_gb": self.gpu_memory_gb,
            "largest_engine_share": self.largest_engine_share,
            "seconds": dict(self.seconds),
            "run_hours": self.run_hours,
            "price_per_gpu_hour": self.price_per_gpu_hour,
            "cost": self.cost,
            "refusals": list(self.refusals),
            "notes": list(self.notes),
        }


def make_plan(config: RunConfig, resources: Resources, price: float = H100_PRICE) -> Plan:
    """Plans a run; raises BadInput only where nothing can be said at all, e.g. of a model of unknown size."""
    shape = model_shape(resolve_model(config.model.path))
    num_gpus = config.cluster.num_nodes * config.cluster.gpus_per_node
    gpu = GPUS.get(_gpu_type(resources), GPUS["H100"])
    gpus = _place(config, shape, num_gpus)
    seconds = _predict(config, shape, gpu, num_gpus) if num_gpus else {}
    hours = _run_hours(config, seconds) if seconds else 0.0
    return Plan(
        config, resources, (*resources.secrets, *local_secrets()), shape.parameters, gpus, gpu.memory_bytes / 1e9,
        _engine_share(gpus, gpu), seconds, hours, price, hours * num_gpus * price,
        tuple(_refusals(config, resources, gpus, gpu)), tuple(_notes(config, resources)),
    )  # fmt: skip


def refuse(plan: Plan) -> None:
    """Raises BadInput if anything speaks against the plan."""
    if plan.refusals:
        raise BadInput("this would not run", "; ".join(plan.refusals), "`rlhaiku plan` shows it all.")


def _gpu_type(resources: Resources) -> str:
    return resources.gpu.split(":")[0].rstrip("!")


def _ranks(config: RunConfig, num_gpus: int) -> int:
    """Trainer ranks: every card, or those that the engines leave."""
    taken = config.rollout.num_engines * config.rollout.gpus_per_engine
    return num_gpus if config.cluster.colocate else num_gpus - taken


def _place(config: RunConfig, shape: ModelShape, num_gpus: int) -> tuple[GpuPlan, ...]:
    """Engines on the first cards, one each; trainer ranks on all of them, or on the rest."""
    engines, per_node = config.rollout.num_engines, config.cluster.gpus_per_node
    ranks = _ranks(config, num_gpus)
    per_engine = config.rollout.groups_per_step * config.rollout.group_size / engines
    longest = max(config.rollout.max_tokens, config.evaluation.max_tokens)
    engine = {
        "engine weights": 2.0 * shape.parameters,
        "engine KV cache": kv_cache_bytes(shape, -int(-per_engine // 1), longest),
    }
    has_reference, parts = config.algorithm.kl_coef > 0, config.trainer.tensor_parallel
    trainer = trainer_bytes(shape, max(1, ranks), has_reference, parts)
    trainer["activations"] = activation_bytes(shape, config.trainer.micro_batch_tokens)
    plans = []
    for index in range(num_gpus):
        rank = index if config.cluster.colocate else index - engines
        actors = [f"{config.rollout.engine} engine {index}"] if index < engines else []
        actors += [f"{config.trainer.backend} trainer rank {rank}"] if 0 <= rank < ranks else []
        held = (engine if index < engines else {}) | (trainer if 0 <= rank < ranks else {})
        gigabytes = {name: size / 1e9 for name, size in held.items()}
        plans.append(GpuPlan(index // per_node, index % per_node, tuple(actors), gigabytes))
    return tuple(plans)


def _engine_share(gpus: tuple[GpuPlan, ...], gpu: Gpu) -> float:
    """What the fullest shared card leaves to its engine."""
    trainers = [
        sum(size for name, size in each.gigabytes.items() if not name.startswith("engine"))
        for each in gpus if len(each.actors) == 2
    ]  # fmt: skip
    return max(0.0, 1 - max(trainers) * 1e9 / gpu.memory_bytes) if trainers else 0.0


def _predict(config: RunConfig, shape: ModelShape, gpu: Gpu, num_gpus: int) -> dict[str, float]:
    rollout, trainer = config.rollout, config.trainer
    has_reference = config.algorithm.kl_coef > 0
    is_shared = trainer.shared_prompt and trainer.backend == "torch"  # Megatron forwards each completion's prompt
    tokens = train_tokens(rollout.groups_per_step, rollout.group_size, is_shared)
    ranks = max(1, _ranks(config, num_gpus))
    seconds = {
        "rollout": rollout_s(shape, gpu, rollout.groups_per_step / rollout.num_engines, rollout.group_size),
        "train": train_s(shape, gpu, ranks, tokens, trainer.optimizer_steps, has_reference),
        "sync": sync_s(shape, gpu, config.cluster.colocate),
    }
    overlaps = rollout.max_staleness > 0 and not config.cluster.colocate
    work = max(seconds["rollout"], seconds["train"]) if overlaps else seconds["rollout"] + seconds["train"]
    evaluation = config.evaluation
    prompts = evaluation.num_prompts / rollout.num_engines
    return seconds | {
        "step": work + seconds["sync"],
        "evaluation": rollout_s(shape, gpu, prompts, evaluation.samples_per_prompt),
    }


def _run_hours(config: RunConfig, seconds: Mapping[str, float]) -> float:
    """Start, steps, evaluations (one before the first step, one after the last) and checkpoints."""
    steps = config.num_steps
    evaluations = 1 + -(-steps // config.evaluation.interval)
    saves = -(-steps // config.output.save_interval)
    return (START_S + steps * seconds["step"] + evaluations * seconds["evaluation"] + saves * SAVE_S) / 3600


def _refusals(config: RunConfig, resources: Resources, gpus: tuple[GpuPlan, ...], gpu: Gpu) -> list[str]:
    said = []
    cluster = config.cluster
    try:
        if cluster.gpus_per_node not in (0, resources.gpus_per_node):
            said.append(f"cluster.gpus_per_node is {cluster.gpus_per_node}, RLHAIKU_GPU is {resources.gpu}")
    except BadInput as error:
        said.append(str(error))
    if resources.nodes != cluster.num_nodes:
        said.append(f"cluster.num_nodes is {cluster.num_nodes}, RLHAIKU_NODES is {resources.nodes}")
    if resources.timeout_s > DAY_S:
        said.append(f"a timeout is at most {DAY_S} s; RLHAIKU_TIMEOUT_S is {resources.timeout_s}")
    if config.judge.required and not os.environ.get("LLM_JUDGE_URL") and not resources.secrets:
        said.append("judge.required is true, but LLM_JUDGE_URL is not set and RLHAIKU_SECRETS names no secret")
    return said + (_misfits(config, gpus, gpu) if gpus else [])


def _misfits(config: RunConfig, gpus: tuple[GpuPlan, ...], gpu: Gpu) -> list[str]:
    """What does not fit the cards, or does not divide among them."""
    said = []
    rollout, ranks = config.rollout, _ranks(config, len(gpus))
    over = [each for each in gpus if each.total_gb * 1e9 > gpu.memory_bytes]
    if over:
        said.append(f"{len(over)} GPUs would need {over[0].total_gb:.1f} of {gpu.memory_bytes / 1e9:.0f} GB")
    per_step = rollout.groups_per_step * rollout.group_size // config.trainer.optimizer_steps
    if rollout.num_engines > len(gpus) or ranks < 1:
        said.append(f"{rollout.num_engines} engines leave {max(0, ranks)} of {len(gpus)} GPUs to the trainer")
    elif per_step % ranks:
        said.append(f"{per_step} completions an optimizer step are not divisible among {ranks} trainer ranks")
    if rollout.groups_per_step % rollout.num_engines:
        said.append(f"{rollout.groups_per_step} groups a step are not divisible among {rollout.num_engines} engines")
    return said


def _notes(config: RunConfig, resources: Resources) -> list[str]:
    notes = [f"each attempt saves and ends after {STOP_SHARE * resources.timeout_s / 3600:.1f} h; a retry goes on"]
    try:
        check_settings(config)
    except BadInput as error:
        notes.append(f"this build does not run it yet: {error}")
    if resources.gpu and not config.cluster.gpus_per_node:
        notes.append(f"this preset uses no GPU; RLHAIKU_GPU= does without {resources.gpu}")
    elif _gpu_type(resources) not in GPUS:
        notes.append(f"nothing is known of {resources.gpu}: memory and time are an H100's")
    if not os.environ.get("LLM_JUDGE_URL"):
        notes.append("no LLM_JUDGE_URL: the reward would be structure only")
    return notes
