"""From settings and environment to what the reward workers do."""

import importlib
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

    Raises BadInput for a function that cannot be imported, or a required judge without LLM_JUDGE_URL.
    """
    if reward is not None and rubric is None:
        return RewardSpec(((reward, 1.0),))
    functions = tuple((_function(name, config), weight) for name, weight in config.reward.functions.items())
    functions += () if reward is None else ((reward, 1.0),)
    if HAIKU not in config.reward.functions:
        return RewardSpec(functions)
    if rubric is None and config.judge.rubric:
        rubric = load_rubric(config.judge.rubric)
    return RewardSpec(functions, judge_settings(config, directory), None if rubric is None else as_rubric(rubric))


def may_score_inline(spec: RewardSpec) -> bool:
    """Whether the reward is known to be quick enough for the coordinator's own process: ours, without a judge."""
    is_ours = all(isinstance(function, HaikuReward) for function, _ in spec.functions)
    return spec.inline and spec.judge is None and is_ours


def judge_settings(config: RunConfig, directory: Path) -> JudgeSettings | None:
    """Where the judge is, from the environment, or None. The key stays behind: workers read their own environment."""
    judge = config.judge
    settings = from_environment(
        required=judge.required,
        poems_per_request=judge.poems_per_request,
        max_concurrency=judge.max_concurrency,
        requests_per_s=judge.requests_per_s,
        give_up_s=judge.give_up_s,
        cache_path=(directory / "judge.sqlite").resolve() if judge.cache else None,
        nonce_seed=str(config.seed),
    )
    return settings and settings.without_key()


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
