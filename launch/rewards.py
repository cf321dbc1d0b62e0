"""From settings and environment to what the reward workers do."""

import importlib
import secrets
from dataclasses import replace
from pathlib import Path

from actors.reward_worker import RewardFn, RewardSpec
from rlhaiku.config import RunConfig
from rlhaiku.errors import BadInput
from rlhaiku.haiku.reward import HaikuReward
from rlhaiku.judge import JudgeSettings, as_rubric, from_environment, load_rubric

HAIKU = "haiku"


def reward_spec(config: RunConfig, reward: RewardFn | None, rubric: object, directory: Path) -> RewardSpec:
    """The reward of a run: `reward` and `rubric` come from Python and win over the configuration.

    A `reward` alone replaces the configured functions; beside a `rubric`, which needs them, it is added to them.

    Raises BadInput for a function that cannot be imported, or a required judge that is unset or that nobody would ask.
    """
    replaces = reward is not None and rubric is None
    configured = {} if replaces else config.reward.functions
    functions = tuple((_function(name, config), weight) for name, weight in configured.items())
    functions += () if reward is None else ((reward, 1.0),)
    timeout_s = config.reward.timeout_s
    if HAIKU not in configured:
        if config.judge.required:
            found = "a reward of your own" if replaces else ", ".join(configured)
            remedy = "Add `haiku` to reward.functions, pass a rubric beside the reward, or set judge.required=false."
            raise BadInput("a required judge needs the `haiku` reward, which asks it", found, remedy)
        return RewardSpec(functions, timeout_s=timeout_s)
    if rubric is None and config.judge.rubric:
        rubric = load_rubric(config.judge.rubric)
    made = None if rubric is None else as_rubric(rubric)
    return RewardSpec(functions, judge_settings(config, directory), made, timeout_s)


def may_score_inline(spec: RewardSpec) -> bool:
    """Whether the reward is known to be quick enough for the coordinator's own process: ours, without a judge."""
    return spec.judge is None and all(isinstance(function, HaikuReward) for function, _ in spec.functions)


def judge_settings(config: RunConfig, directory: Path) -> JudgeSettings | None:
    """Where the judge is, from the environment, or None. The key stays behind: workers read their own environment.

    Leaves `judge.salt` in the run's directory, so that a resumed run fences poems as before. Raises BadInput.
    """
    judge = config.judge
    settings = from_environment(
        required=judge.required,
        poems_per_request=judge.poems_per_request,
        max_concurrency=judge.max_concurrency,
        requests_per_s=judge.requests_per_s,
        max_tries=judge.max_tries,
        max_asks=judge.max_asks,
        give_up_s=judge.give_up_s,
        usd_per_million=judge.usd_per_million,
        cache_path=(directory / "judge.sqlite").resolve() if judge.cache else None,
    )
    if settings is None:
        return None
    if settings.timeout_s >= config.cluster.wait_timeout_s:
        rule = f"LLM_JUDGE_TIMEOUT must be below cluster.wait_timeout_s ({config.cluster.wait_timeout_s:g})"
        raise BadInput(rule, settings.timeout_s, "A worker waiting for an answer would look dead: change either.")
    return replace(settings.without_key(), nonce_salt=_salt(directory / "judge.salt"))


def _salt(path: Path) -> str:
    """What a run's fences derive from: random, so that no poem can write one, and the same when the run is resumed."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(16))
    return path.read_text()


def _function(name: str, config: RunConfig) -> RewardFn:
    """`haiku`, or what `package.module:name` names."""
    if name == HAIKU:
        reward = config.reward
        return HaikuReward(reward.topic_weight, reward.mode, reward.gate, reward.dictionary)
    module, colon, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute) if colon else None
    except (ImportError, AttributeError) as error:
        raise BadInput("reward.functions must name functions that can be imported", name, f"{error}.") from None
    if not callable(function):
        raise BadInput("reward.functions takes `haiku` or package.module:name", name, "Name a function(prompt, text).")
    made: RewardFn = function
    return made
