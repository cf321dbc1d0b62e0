"""One run's settings: a frozen tree with one section per part, made from a preset plus overrides.

Bad input ends as `BadInput` with the rule, the value and the remedy before any actor starts.
Derived numbers are properties, never settings.
"""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlhaiku.errors import BadInput
from rlhaiku.files import write_whole

BUNDLED = "bundled"
"""As a path: the model or data set shipped in `rlhaiku/assets`."""


class Section(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelConfig(Section):
    """The policy."""

    path: str = BUNDLED
    """`bundled`, a Hugging Face directory, or a hub id."""


class DataConfig(Section):
    """The prompts."""

    path: str = BUNDLED
    """`bundled`, or a directory with `train.parquet` and `test.parquet` as `rlhaiku prepare` writes them."""


class RolloutConfig(Section):
    """How completions are drawn."""

    engine: Literal["torch", "vllm", "sglang"] = "torch"
    """Which rollout engine."""
    num_engines: int = Field(default=1, ge=1)
    """Rollout engine actors."""
    threads_per_engine: int = Field(default=1, ge=1)
    """CPU threads of each torch engine; part of what makes results reproducible."""
    groups_per_step: int = Field(default=16, ge=1)
    """Prompts per train step (P)."""
    group_size: int = Field(default=8, ge=2)
    """Completions per prompt (G)."""
    tile_groups: int = Field(default=8, ge=1)
    """Whole groups an engine decodes together; one call carries one tile."""
    gpus_per_engine: int = Field(default=1, ge=1)
    """GPUs that an SGLang engine is cut over."""
    max_tokens: int = Field(default=64, ge=1)
    """Longest completion, in tokens."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; the trainer's logprobs use the same."""
    deterministic: bool = True
    """Keep every decode tile at its full size, so that results do not depend on who finished first."""
    max_staleness: int = Field(default=0, ge=0)
    """Weight versions a trained completion may lag behind; 0 is the synchronous run."""


class RewardConfig(Section):
    """How completions are scored."""

    num_workers: int = Field(default=1, ge=1)
    """Reward worker actors."""
    functions: dict[str, float] = Field(default={"haiku": 1.0}, min_length=1)
    """Reward functions and their weights: `haiku`, or `package.module:name` of your own."""
    mode: Literal["default", "seed"] = "default"
    """How `haiku` scores structure: the hardened scorer, or the tutorial's with all its quirks."""
    topic_weight: float = Field(default=0.0, ge=0, lt=0.125)
    """Share of its structure that a poem loses with `haiku` if its lines do not name the topic."""
    repeat_penalty: float = Field(default=0.0, ge=0)
    """What a completion loses, before advantages, if all its word pairs are in the step's poems for every other prompt,
    too: no reward of a single poem sees that all prompts get the same one. The share is the component `repeated`."""
    dictionary: Literal["bundled", "nltk"] = "bundled"
    """Where syllables are looked up; `nltk` needs nltk and its cmudict corpus installed."""
    gate: Literal["perfect", "soft", "off"] = "perfect"
    """Which poems the judge sees: those that earn 1, all by the square of what they earn, or all."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Longest time for one poem in a function of your own; a poem that takes longer is unscored."""


class JudgeConfig(Section):
    """The LLM judge; where it is comes from LLM_JUDGE_URL, LLM_JUDGE_MODEL, LLM_JUDGE_API_KEY, LLM_JUDGE_TIMEOUT."""

    required: bool = False
    """Without LLM_JUDGE_URL: stop instead of scoring structure only."""
    rubric: str = ""
    """`package.module:name` of your own rubric; empty is the default one."""
    poems_per_request: int = Field(default=8, ge=1)
    """Most poems of one topic in a request."""
    max_concurrency: int = Field(default=64, ge=1)
    """Most requests at once, for each reward worker."""
    requests_per_s: float = Field(default=0.0, ge=0)
    """Token bucket for each reward worker; 0 is no limit."""
    max_tries: int = Field(default=12, ge=6)
    """Failures of one request while the judge answers others, before its poems become unscored."""
    max_asks: int = Field(default=3, ge=1)
    """Times a poem is put to the judge when its answers cannot be read."""
    give_up_s: float = Field(default=600.0, gt=0)
    """An outage must last this long before its poems become unscored."""
    cache: bool = True
    """Keep judgements in `judge.sqlite` of the run directory, shared by the workers."""
    usd_per_million: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] = (0.0, 0.0)
    """Price of a million prompt tokens, and of a million completion tokens; for the metric `judge/cost_usd`."""


class AlgorithmConfig(Section):
    """GRPO."""

    advantage_scale: Literal["std", "none"] = "std"
    """Divide centred rewards by the group's standard deviation, or not (Dr.GRPO)."""
    min_scored: int = Field(default=2, ge=2)
    """A group with fewer scored completions is dropped."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """Importance ratios below 1 - clip_low stop counting."""
    clip_high: float = Field(default=0.28, gt=0)
    """Importance ratios above 1 + clip_high stop counting."""
    max_importance_ratio: float = Field(default=0.0, ge=0)
    """A token's gradient is weighed with its importance ratio, but with no more than this; 0 sets no bound."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL term; the reference model is loaded only if this is above 0."""
    loss_aggregation: Literal["token", "sequence"] = "token"
    """Mean over all tokens of the batch, or over sequences of their token means."""


class TrainerConfig(Section):
    """The optimizer and its host."""

    backend: Literal["torch", "megatron"] = "torch"
    """Which trainer."""
    threads: int = Field(default=2, ge=1)
    """CPU threads of the torch trainer."""
    lr: float = Field(default=1e-6, gt=0)
    """Peak learning rate."""
    lr_schedule: Literal["constant", "linear"] = "constant"
    """After warm-up: stay, or fall linearly to a tenth at the last step."""
    lr_warmup_steps: int = Field(default=0, ge=0)
    """Train steps of linear warm-up."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the gradient's mean."""
    adam_beta2: float = Field(default=0.98, ge=0, lt=1)
    """Decay of the gradient's square."""
    adam_eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the gradient's square."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled, on matrices only."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    optimizer_steps: int = Field(default=1, ge=1)
    """Optimizer steps per train step: the batch is cut into this many parts, by group."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Most tokens forwarded at once, padding included; bounds memory, changes no result beyond rounding."""
    shared_prompt: bool = True
    """Forward a group's prompt once for all its completions."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that share one copy of the Megatron trainer."""
    recompute: bool = False
    """Keep no activations inside a layer and make them again in the backward pass: less memory, a third more work."""


class EvaluationConfig(Section):
    """Held-out evaluation: before the first step, every `interval` steps, and after the last."""

    interval: int = Field(default=20, ge=1)
    """Train steps between evaluations."""
    num_prompts: int = Field(default=64, ge=1)
    """Held-out prompts used, at most."""
    samples_per_prompt: int = Field(default=4, ge=1)
    """Completions per held-out prompt."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 is greedy."""
    max_tokens: int = Field(default=64, ge=1)
    """Longest completion, in tokens."""


class ClusterConfig(Section):
    """Where the actors live."""

    num_nodes: int = Field(default=1, ge=1)
    """Machines; engines on CPUs and reward workers take turns over them."""
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs on each machine; 0 is a CPU run."""
    colocate: bool = False
    """Trainer ranks and engines share GPUs."""
    weight_path: Literal["slime", "slots"] = "slime"
    """How weights get from Megatron to SGLang: by slime's updater, or on a shared card by memory that stays open."""
    wait_timeout_s: float = Field(default=600.0, gt=0)
    """Longest wait on any actor before the run stops and says who waited for whom."""


class OutputConfig(Section):
    """What a run leaves behind."""

    save_interval: int = Field(default=20, ge=1)
    """Train steps between checkpoints; the last step is always saved."""
    keep_last: int = Field(default=2, ge=2)
    """Complete checkpoints kept."""
    poems_interval: int = Field(default=10, ge=1)
    """Steps between poems on the console and in `samples.jsonl`."""
    sinks: tuple[Annotated[str, Field(pattern=r"^(tensorboard|wandb(:[^/:\s]+/[^/:\s]+)?)$")], ...] = ()
    """Where numbers go besides `metrics.jsonl`: `tensorboard`, `wandb`, or `wandb:PROJECT/GROUP`."""


class RunConfig(Section):
    """Everything about one run."""

    seed: int = Field(default=0, ge=0)
    """Order of the prompts and every random draw derive from it."""
    num_steps: int = Field(default=50, ge=1)
    """Train steps."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    judge: JudgeConfig = JudgeConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    trainer: TrainerConfig = TrainerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    output: OutputConfig = OutputConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        rollout, trainer, algorithm = self.rollout, self.trainer, self.algorithm
        clipped_at = 1 + algorithm.clip_high
        if 0 < algorithm.max_importance_ratio <= clipped_at:
            raise ValueError(
                f"algorithm.max_importance_ratio must be 0, or above 1 + algorithm.clip_high ({clipped_at:g})"
                f"; got {algorithm.max_importance_ratio:g}. Below, the clip bounds the ratio already; 2 is usual."
            )
        if rollout.groups_per_step % trainer.optimizer_steps:
            raise ValueError(
                f"trainer.optimizer_steps must divide rollout.groups_per_step ({rollout.groups_per_step})"
                f"; got {trainer.optimizer_steps}. Choose a divisor."
            )
        if rollout.engine == "torch" and rollout.groups_per_step % rollout.tile_groups:
            raise ValueError(
                f"rollout.groups_per_step must be a multiple of rollout.tile_groups ({rollout.tile_groups})"
                f"; got {rollout.groups_per_step}. Set both, e.g. 16 and 8."
            )
        if self.reward.repeat_penalty and rollout.groups_per_step == 1:
            raise ValueError("rollout.groups_per_step must be at least 2 for reward.repeat_penalty; got 1. Try 16.")
        return self


def preset_names() -> list[str]:
    """Names of the shipped presets."""
    return sorted(p.name.removesuffix(".toml") for p in _presets().iterdir() if p.name.endswith(".toml"))


def load_config(preset: str, overrides: Iterable[str] = ()) -> RunConfig:
    """Reads a preset and applies `section.key=value` overrides, the last one winning.

    Raises BadInput for an unknown preset or key, or a value out of range.
    """
    if preset not in preset_names():
        raise BadInput("--preset must name a shipped preset", preset, _nearest(preset, preset_names()))
    tree = tomllib.loads(_presets().joinpath(f"{preset}.toml").read_text())
    for override in overrides:
        _apply(tree, override)
    return config_from_dict(tree)


def with_overrides(config: RunConfig, overrides: Iterable[str]) -> RunConfig:
    """The configuration with `section.key=value` overrides applied; raises BadInput."""
    tree = config.model_dump()
    for override in overrides:
        _apply(tree, override)
    return config_from_dict(tree)


def config_from_dict(tree: Mapping[str, Any]) -> RunConfig:
    """Validates a nested dictionary; raises BadInput about its first mistake."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise _explain(error) from None


def read_config(path: Path) -> RunConfig:
    """Reads a `config.toml` that `write_config` wrote; raises BadInput if there is none, or only a part of one."""
    if not path.is_file():
        raise BadInput("a run directory holds a config.toml", str(path), "Check the name of the directory.")
    rule, remedy = "a run's config.toml must be whole", "Bring it back: defaults in its place would be another run."
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no TOML, or no text
        raise BadInput(rule, f"{path}: {error}", remedy) from None
    if lacking := RunConfig.model_fields.keys() - tree.keys():
        raise BadInput(rule, f"{path} without {', '.join(sorted(lacking))}", remedy)
    try:
        return config_from_dict(tree)
    except BadInput as error:
        rule = f"settings of an earlier version must still be known; in {path}, {error.rule}"
        raise BadInput(rule, error.value, f"Edit it there. {error.remedy}") from None


def write_config(config: RunConfig, path: Path) -> None:
    """Writes every setting, defaults included, as TOML; raises OutputFailed."""
    tree = config.model_dump()
    lines = [f"{key} = {_toml(value)}" for key, value in tree.items() if not isinstance(value, dict)]
    for name, section in tree.items():
        if isinstance(section, dict):
            lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in section.items())]
    write_whole(path, ("\n".join(lines) + "\n").encode())


def field_names() -> list[str]:
    """Every setting as `section.key`, in declaration order."""
    names = []
    for name, info in RunConfig.model_fields.items():
        section = info.annotation
        if isinstance(section, type) and issubclass(section, Section):
            names += [f"{name}.{key}" for key in section.model_fields]
        else:
            names.append(name)
    return names


def describe_settings(config: RunConfig) -> list[tuple[str, str, str]]:
    """(key, value as TOML, what it means) of every setting, in declaration order."""
    rows = []
    for key in field_names():
        *sections, leaf = key.split(".")
        owner: Section = getattr(config, sections[0]) if sections else config
        rows.append((key, _toml(getattr(owner, leaf)), type(owner).model_fields[leaf].description or ""))
    return rows


def fingerprint(config: RunConfig) -> str:
    """SHA-256 of the settings that decide the weights: equal for runs that differ in where and how watched they are."""
    tree = config.model_dump(exclude={
        "evaluation": True, "cluster": True, "output": True, "rollout": {"num_engines"}, "reward": {"num_workers"},
        "judge": {"usd_per_million"},
    })
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _presets() -> Any:  # noqa: ANN401  (importlib's Traversable has no stable import path on 3.11 and 3.12)
    return resources.files("rlhaiku").joinpath("presets")


def _apply(tree: dict[str, Any], override: str) -> None:
    """Sets one `a.b=c` in a nested dictionary; the value is TOML, or a bare string."""
    key, equals, raw = override.partition("=")
    key = key.strip()
    if not equals:
        raise BadInput("--set takes KEY=VALUE", override, "For example --set rollout.group_size=8.")
    if key not in field_names():
        raise BadInput("--set must name a setting", key, _nearest(key, field_names()))
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    *sections, leaf = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[leaf] = value


def _explain(error: ValidationError) -> BadInput:
    """The first mistake pydantic found, in this project's words."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return BadInput("a config key must exist", key, _nearest(key, field_names()))
    if first["type"] == "value_error":
        rule, _, rest = str(first["ctx"]["error"]).partition("; got ")
        value, _, remedy = rest.partition(". ")
        return BadInput(rule, value, remedy)
    remedy = f"Change it, e.g. --set {key}=..., or leave it out for the default."
    return BadInput(f"{key}: {first['msg'].lower()}", first["input"], remedy)


def _nearest(name: str, candidates: list[str]) -> str:
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.4)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(candidates)}."


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # A JSON string is a TOML string but for the one control character that JSON leaves alone.
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)
