"""What a launch on Modal would do, before it does it: `rlhaiku plan`. Offline, without an account, without torch."""

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.checks import check_settings, resolve_model
from launch.estimates import (
    ENGINE_SHARES,
    GPUS,
    START_S,
    TRAINER_SHARES,
    Gpu,
    ModelShape,
    engine_card_bytes,
    engine_share,
    model_shape,
    preallocated_kv_bytes,
    relay_card_bytes,
    rollout_s,
    save_s,
    sync_s,
    train_flops,
    train_s,
    train_tokens,
    trainer_card_bytes,
)
from launch.placement import Placement, is_slime, place_on_cards, plan_placement
from launch.resources import DAY_S, MAX_NODE_GPUS, STOP_SHARE, Resources, is_provided, local_secrets
from launch.rewards import reward_spec, without_own
from rlhaiku.config import ClusterConfig, RunConfig, with_overrides
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
    """What they need on it, 1 GB being 10^9 bytes; empty for a model of unknown size."""
    preallocated_kv_gb: float = 0.0
    """The engine's cache as it is really taken, needed or not."""

    @property
    def total_gb(self) -> float:
        """All that is needed."""
        return sum(self.gigabytes.values())

    @property
    def taken_gb(self) -> float:
        """All that is taken, the cache as it is preallocated."""
        return self.total_gb - self.gigabytes.get("engine KV cache", 0.0) + max(0.0, self.preallocated_kv_gb)


@dataclass(frozen=True, slots=True)
class CpuActor:
    """A process that has no card."""

    node: int
    name: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything `rlhaiku plan` says."""

    config: RunConfig
    resources: Resources
    secrets: tuple[str, ...]
    """Names of Modal secrets, and of variables that go along; never a value."""
    parameters: int
    """0 if unknown."""
    gpus: tuple[GpuPlan, ...]
    cpu_actors: tuple[CpuActor, ...]
    gpu_memory_gb: float
    engine_share: float
    """Of a card that an SGLang engine preallocates; 0 for other engines."""
    seconds: Mapping[str, float]
    """Predicted, by phase of a step, `step`, and what is not in every step; empty for a model of unknown size."""
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
            "placement": [asdict(gpu) | {"total_gb": gpu.total_gb, "taken_gb": gpu.taken_gb} for gpu in self.gpus],
            "cpu_actors": [asdict(actor) for actor in self.cpu_actors],
            "gpu_memory_gb": self.gpu_memory_gb,
            "engine_share": self.engine_share,
            "seconds": dict(self.seconds),
            "run_hours": self.run_hours,
            "price_per_gpu_hour": self.price_per_gpu_hour,
            "cost": self.cost,
            "refusals": list(self.refusals),
            "notes": list(self.notes),
        }


def make_plan(
    config: RunConfig, resources: Resources, price: float = H100_PRICE, has_te: bool = True
) -> Plan:
    """Plans a run; raises BadInput only where nothing can be said at all, e.g. of a model that is nowhere.

    `has_te`: whether Megatron will have Transformer Engine, as it has in the pinned image.
    """
    shape = _shape(config, resources)
    num_gpus = config.cluster.num_nodes * config.cluster.gpus_per_node
    gpu = GPUS.get(_gpu_type(resources), GPUS["H100"])
    gpus = _place(config, shape, gpu, num_gpus, has_te)
    seconds = _predict(config, shape, gpu, num_gpus) if shape and num_gpus else {}
    hours = _run_hours(config, seconds) if seconds else 0.0
    ranks = max(1, _ranks(config, num_gpus))
    is_sglang = config.rollout.engine == "sglang"
    share = engine_share(config, shape, ranks, gpu.memory_bytes, has_te) if shape and is_sglang else 0.0
    secrets = (*resources.named_secrets, *local_secrets())
    return Plan(
        config, resources, secrets, shape.parameters if shape else 0, gpus, tuple(_cpu_actors(config)),
        gpu.memory_bytes / 1e9, share, seconds, hours, price, hours * num_gpus * price,
        tuple(_refusals(config, resources, gpus, gpu)), tuple(_notes(config, resources, shape, gpus)),
    )  # fmt: skip


def refuse(plan: Plan) -> None:
    """Raises BadInput if anything speaks against the plan."""
    if plan.refusals:
        raise BadInput("this would not run", "; ".join(plan.refusals), "`rlhaiku plan` shows it all.")


def _shape(config: RunConfig, resources: Resources) -> ModelShape | None:
    """None where the size is not known: a hub id, another kind of model, and what is on a volume, not to be seen here.
    """
    path = config.model.path
    if Path(path).is_relative_to(resources.paths.root) and not Path(path).exists():
        return None
    model = resolve_model(path)
    try:
        return model_shape(model)
    except BadInput:
        return None


def _gpu_type(resources: Resources) -> str:
    return resources.gpu.split(":")[0].rstrip("!")


def _ranks(config: RunConfig, num_gpus: int) -> int:
    """Trainer ranks: every card, or those that the engines leave."""
    return len(_cards(config, num_gpus)[1])


def _cards(config: RunConfig, num_gpus: int) -> tuple[dict[int, list[int]], dict[int, int]]:
    """Engines and trainer rank by card; nobody where they do not fit, which is refused."""
    rollout = config.rollout
    if not is_slime(config):
        try:
            engine_cards, rank_cards = place_on_cards(config) if num_gpus else ((), ())
        except BadInput:
            engine_cards, rank_cards = (), ()
        engines: dict[int, list[int]] = {}
        for engine, card in enumerate(engine_cards):
            engines.setdefault(card, []).append(engine)
        return engines, {card: rank for rank, card in enumerate(rank_cards)}
    taken = rollout.num_engines * rollout.gpus_per_engine
    first = 0 if config.cluster.colocate else taken
    return (
        {card: [card // rollout.gpus_per_engine] for card in range(min(taken, num_gpus))},
        {card: card - first for card in range(first, num_gpus)},
    )


def _place(config: RunConfig, shape: ModelShape | None, gpu: Gpu, num_gpus: int, has_te: bool) -> tuple[GpuPlan, ...]:
    """Who is on each card, and what it needs there."""
    engines, ranks = _cards(config, num_gpus)
    num_ranks, per_node = max(1, len(ranks)), config.cluster.gpus_per_node
    engine = engine_card_bytes(config, shape) if shape else {}
    trainer = trainer_card_bytes(config, shape, num_ranks, has_te) if shape else {}
    relay = relay_card_bytes(config, shape) if shape else {}
    cache = preallocated_kv_bytes(config, shape, num_ranks, gpu.memory_bytes, has_te) if shape else 0.0
    source = next(iter(ranks), 0)
    plans = []
    for index in range(num_gpus):
        here, has_relay = engines.get(index, []), index in engines and index != source and not is_slime(config)
        actors = [f"{config.rollout.engine} engine {one}" for one in here]
        actors += [f"{config.trainer.backend} trainer rank {ranks[index]}"] if index in ranks else []
        actors += ["weight relay"] if has_relay else []
        held = {name: size * len(here) for name, size in engine.items()} if here else {}
        held |= trainer if index in ranks else {}
        held |= relay if has_relay and index not in ranks else {}  # a rank's slots are counted with it
        gigabytes = {name: size / 1e9 for name, size in held.items()}
        plans.append(GpuPlan(index // per_node, index % per_node, tuple(actors), gigabytes, len(here) * cache / 1e9))
    return tuple(plans)


def _cpu_actors(config: RunConfig) -> Iterator[CpuActor]:
    """The driver, the workers, and where there are no cards everybody else; placed as `launch/placement.py` does."""
    rollout, cluster, workers = config.rollout, config.cluster, (1,) * config.reward.num_workers
    yield CpuActor(0, "driver")
    if is_slime(config):
        yield CpuActor(0, "registry")
        yield from (CpuActor(0, f"reward worker {place}") for place in range(len(workers)))
        return
    where = _placement(config)
    if not cluster.gpus_per_node:
        yield CpuActor(0, f"{config.trainer.backend} trainer")
        for place, bundle in enumerate(where.engine_bundles):
            yield CpuActor(where.node_of(bundle), f"{rollout.engine} engine {place}")
    for place in range(len(workers)):
        yield CpuActor(where.node_of(where.worker_bundle(place)), f"reward worker {place}")
    for bundle in () if cluster.gpus_per_node else where.relay_bundles:
        yield CpuActor(where.node_of(bundle), f"weight relay {bundle}")


def _placement(config: RunConfig) -> Placement:
    """Where actors go whatever the cores; cards that are too few, which is refused, count as none."""
    try:
        return plan_placement(config, num_cores=sys.maxsize)
    except BadInput:
        return plan_placement(config.model_copy(update={"cluster": ClusterConfig()}), num_cores=sys.maxsize)


def _predict(config: RunConfig, shape: ModelShape, gpu: Gpu, num_gpus: int) -> dict[str, float]:
    rollout, trainer = config.rollout, config.trainer
    is_shared = trainer.shared_prompt and trainer.backend == "torch"  # Megatron forwards each completion's prompt
    tokens = train_tokens(rollout.groups_per_step, rollout.group_size, is_shared)
    flop = tokens * train_flops(shape, config.algorithm.kl_coef > 0, trainer.recompute)
    ranks = max(1, _ranks(config, num_gpus))
    share = ENGINE_SHARES[rollout.engine]
    by_slime = is_slime(config) and config.cluster.weight_path == "slime"
    seconds = {
        "rollout": rollout_s(shape, gpu, rollout.groups_per_step / rollout.num_engines, rollout.group_size, share),
        "train": train_s(shape, gpu, ranks, flop, trainer.optimizer_steps, TRAINER_SHARES[trainer.backend]),
        "sync": sync_s(shape, gpu, config.cluster.colocate, by_slime),
    }
    overlaps = rollout.max_staleness > 0 and not config.cluster.colocate
    work = max(seconds["rollout"], seconds["train"]) if overlaps else seconds["rollout"] + seconds["train"]
    evaluation = config.evaluation
    prompts = evaluation.num_prompts / rollout.num_engines
    return seconds | {
        "step": work + seconds["sync"],
        "evaluation": rollout_s(shape, gpu, prompts, evaluation.samples_per_prompt, share),
        "save": save_s(shape),
    }


def _run_hours(config: RunConfig, seconds: Mapping[str, float]) -> float:
    """Start, steps, evaluations (one before the first step, one after the last) and checkpoints."""
    steps = config.num_steps
    evaluations = 1 + -(-steps // config.evaluation.interval)
    saves = -(-steps // config.output.save_interval)
    run_s = steps * seconds["step"] + evaluations * seconds["evaluation"] + saves * seconds["save"]
    return (START_S + run_s) / 3600


def _refusals(config: RunConfig, resources: Resources, gpus: tuple[GpuPlan, ...], gpu: Gpu) -> list[str]:
    said = [*_machine_refusals(config, resources), *_missing_variables(config, resources), *_server_refusals()]
    try:
        check_settings(config)
        # Where the judge is, is asked above; what only Python can give is looked at where it is given.
        reward_spec(without_own(with_overrides(config, ["judge.required=false"])), None, None, None)
    except BadInput as error:
        said.append(str(error))
    return said + (_misfits(config, gpus, gpu) if gpus else [])


def _machine_refusals(config: RunConfig, resources: Resources) -> Iterator[str]:
    cluster = config.cluster
    try:
        count = resources.gpus_per_node
        if cluster.gpus_per_node not in (0, count):
            yield f"cluster.gpus_per_node is {cluster.gpus_per_node}, RLHAIKU_GPU is {resources.gpu or 'empty'}"
        if resources.nodes > 1 and count < MAX_NODE_GPUS:
            yield f"several nodes are whole hosts of {MAX_NODE_GPUS} GPUs each; RLHAIKU_GPU is {resources.gpu!r}"
    except BadInput as error:
        yield str(error)
    if resources.nodes != cluster.num_nodes:
        yield f"cluster.num_nodes is {cluster.num_nodes}, RLHAIKU_NODES is {resources.nodes}"
    if resources.timeout_s > DAY_S:
        yield f"a timeout is at most {DAY_S} s; RLHAIKU_TIMEOUT_S is {resources.timeout_s}"


def _missing_variables(config: RunConfig, resources: Resources) -> Iterator[str]:
    """What the containers must have in their environment, and nobody is known to put there."""
    needed = {"RAY_AUTH_TOKEN": "RLHAIKU_DASHBOARD=1"} if resources.has_dashboard else {}
    if config.judge.required:
        needed["LLM_JUDGE_URL"] = "judge.required=true"
    is_offline = os.environ.get("WANDB_MODE") in ("offline", "disabled")
    if any(sink.startswith("wandb") for sink in config.output.sinks) and not is_offline:
        needed["WANDB_API_KEY"] = "output.sinks"
    for variable, why in needed.items():
        if not is_provided(variable, resources):
            yield f"{why} needs {variable}: export it, or name what has it, RLHAIKU_SECRETS=NAME={variable}"


def _server_refusals() -> Iterator[str]:
    """A server that is deployed from the same environment; it has one container, so one host's cards."""
    for name in ("RLHAIKU_SERVE_GPU_COUNT", "RLHAIKU_JUDGE_GPU_COUNT"):
        count = os.environ.get(name, "1")
        if not count.isdecimal() or not 1 <= int(count) <= MAX_NODE_GPUS:
            yield f"a web server cannot be clustered, so it has 1 to {MAX_NODE_GPUS} GPUs; {name} is {count}"


def _misfits(config: RunConfig, gpus: tuple[GpuPlan, ...], gpu: Gpu) -> list[str]:
    """What does not fit the cards, or does not divide among them."""
    said = []
    rollout, ranks = config.rollout, _ranks(config, len(gpus))
    over = [each for each in gpus if max(each.total_gb, each.taken_gb) * 1e9 > gpu.memory_bytes]
    if over:
        most = max(over[0].total_gb, over[0].taken_gb)
        needed = f"{len(over)} GPUs would need {most:.1f} of {gpu.memory_bytes / 1e9:.0f} GB"
        said.append(f"{needed}: {_remedies(config)}")
    elif any("engine KV cache" in each.gigabytes and each.preallocated_kv_gb <= 0 for each in gpus):
        said.append(f"the trainer leaves an engine no memory for keys and values: {_remedies(config)}")
    per_step = rollout.groups_per_step * rollout.group_size // config.trainer.optimizer_steps
    if is_slime(config) and (rollout.num_engines * rollout.gpus_per_engine > len(gpus) or ranks < 1):
        said.append(f"{rollout.num_engines} engines leave {max(0, ranks)} of {len(gpus)} GPUs to the trainer")
    elif is_slime(config) and per_step % (copies := max(1, ranks // config.trainer.tensor_parallel)):
        said.append(f"{per_step} completions an optimizer step are not divisible among {copies} trainer ranks")
    if rollout.groups_per_step % rollout.num_engines:
        said.append(f"{rollout.groups_per_step} groups a step are not divisible among {rollout.num_engines} engines")
    return said


def _remedies(config: RunConfig) -> str:
    """What would make room."""
    recompute = "" if config.trainer.recompute else "set trainer.recompute=true, "
    return f"{recompute}lower trainer.micro_batch_tokens or rollout.max_tokens, or take a smaller model"


def _notes(
    config: RunConfig, resources: Resources, shape: ModelShape | None, gpus: tuple[GpuPlan, ...]
) -> Iterator[str]:
    yield f"each attempt saves and ends after {STOP_SHARE * resources.timeout_s / 3600:.1f} h; a retry goes on"
    if not shape:
        yield f"the sizes of {config.model.path} are not known here: no memory, time or cost"
    if any(0 < each.preallocated_kv_gb < each.gigabytes["engine KV cache"] for each in gpus):
        yield "the engines' cache is smaller than all completions at their longest: some may have to wait"
    if resources.gpu and not config.cluster.gpus_per_node:
        yield f"this preset uses no GPU; RLHAIKU_GPU= does without {resources.gpu}"
    elif gpus and _gpu_type(resources) not in GPUS:
        yield f"nothing is known of {resources.gpu}: memory and time are an H100's"
    if not is_provided("LLM_JUDGE_URL", resources):
        yield "no LLM_JUDGE_URL: the reward would be structure only"
