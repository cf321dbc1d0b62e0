"""From settings and environment to what the reward workers do."""

import importlib
import os
import secrets
import sys
from dataclasses import replace
from pathlib import Path

from actors.reward_worker import INLINE_BELOW, RewardFn, RewardSpec
from rlhaiku.config import RunConfig
from rlhaiku.errors import BadInput
from rlhaiku.haiku.reward import HaikuReward
from rlhaiku.judge import JudgeSettings, as_rubric, from_environment, load_rubric

HAIKU = "haiku"
FEW_CORES, INLINE_BELOW_ON_MANY = 4, 64
"""Where workers have cores of their own, an engine's tile is worth carrying to them: on 32 cores 1024 poems scored by
the coordinator held a step up for 0.28 s."""
OWN = "own:"
"""Marks, in a run's `config.toml`, a function or rubric that came from Python and that nobody else can import."""


def reward_spec(config: RunConfig, reward: RewardFn | None, rubric: object, directory: Path | None) -> RewardSpec:
    """The reward of a run: `reward` and `rubric` come from Python and win over the configuration.

    A `reward` alone replaces the configured functions; beside a `rubric`, which needs them, it is added to them.
    `directory` is the run's; None only checks, and leaves nothing behind.

    Raises BadInput for a function that cannot be imported, or a required judge that is unset or that nobody would ask.
    """
    replaces = reward is not None and rubric is None
    given = None if reward is None else name_of(reward)  # a resumed run's configuration has it already
    named = {} if replaces else config.reward.functions
    configured = {name: weight for name, weight in named.items() if name != given}
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
        _refuse_own("judge.rubric", config.judge.rubric, "rubric")
        _find_modules_here()
        rubric = load_rubric(config.judge.rubric)
    made = None if rubric is None else as_rubric(rubric)
    return RewardSpec(functions, judge_settings(config, directory), made, timeout_s)


def as_run(config: RunConfig, reward: RewardFn | None, rubric: object) -> RunConfig:
    """The configuration with what came from Python named in it, so that a resume without it is refused."""
    functions = dict(config.reward.functions) if reward is None or rubric is not None else {}
    if reward is not None:
        functions[name_of(reward)] = 1.0
    judge = config.judge if rubric is None else config.judge.model_copy(update={"rubric": name_of(rubric)})
    named = config.reward.model_copy(update={"functions": functions})
    return config.model_copy(update={"reward": named, "judge": judge})


def name_of(thing: object) -> str:
    """`package.module:name` of what can be imported under it, `own:name` of anything else."""
    name: str = getattr(thing, "__name__", type(thing).__name__)
    module = getattr(thing, "__module__", "__main__")
    if module != "__main__" and getattr(sys.modules.get(module), name, None) is thing:
        return f"{module}:{name}"
    return OWN + name


def without_own(config: RunConfig) -> RunConfig:
    """The configuration without what only Python can give."""
    named = {name: weight for name, weight in config.reward.functions.items() if not name.startswith(OWN)}
    reward = config.reward.model_copy(update={"functions": named or {HAIKU: 1.0}})
    rubric = "" if config.judge.rubric.startswith(OWN) else config.judge.rubric
    return config.model_copy(update={"reward": reward, "judge": config.judge.model_copy(update={"rubric": rubric})})


def from_python(config: RunConfig) -> dict[str, str]:
    """By argument of `launch.local.run`, the names of what only Python can give this run again."""
    named = [("reward", name) for name in config.reward.functions] + [("rubric", config.judge.rubric)]
    return {argument: name.removeprefix(OWN) for argument, name in named if name.startswith(OWN)}


def inline_below(spec: RewardSpec, cores: int | None = None) -> int:
    """Poems; fewer at once are scored in the coordinator's own process.

    None, unless the reward is known to be quick: ours, without a judge. `cores`: of the machine, by default this one.
    """
    is_ours = all(isinstance(function, HaikuReward) for function, _ in spec.functions)
    if not spec.inline or spec.judge is not None or not is_ours:
        return 0
    return INLINE_BELOW if (cores or os.cpu_count() or 1) <= FEW_CORES else INLINE_BELOW_ON_MANY


def judge_settings(config: RunConfig, directory: Path | None) -> JudgeSettings | None:
    """Where the judge is, from the environment, or None. The key stays behind: workers read their own environment.

    Leaves `judge.salt` in the run's directory, if there is one: a resumed run fences poems as before. Raises BadInput.
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
        cache_path=(directory / "judge.sqlite").resolve() if judge.cache and directory else None,
    )
    if settings is None:
        return None
    if settings.timeout_s >= config.cluster.wait_timeout_s:
        rule = f"LLM_JUDGE_TIMEOUT must be below cluster.wait_timeout_s ({config.cluster.wait_timeout_s:g})"
        raise BadInput(rule, settings.timeout_s, "A worker waiting for an answer would look dead: change either.")
    return replace(settings.without_key(), nonce_salt=_salt(directory / "judge.salt") if directory else "")


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
    _refuse_own("reward.functions", name, "reward")
    _find_modules_here()
    module, colon, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute) if colon else None
    except (ImportError, AttributeError) as error:
        raise BadInput("reward.functions must name functions that can be imported", name, f"{error}.") from None
    if not callable(function):
        raise BadInput("reward.functions takes `haiku` or package.module:name", name, "Name a function(prompt, text).")
    made: RewardFn = function
    return made


def _refuse_own(setting: str, name: str, argument: str) -> None:
    if name.startswith(OWN):
        own = name.removeprefix(OWN)
        remedy = f"Go on with it from Python: run(config, {argument}={own}, output_dir=..., resume=True)."
        raise BadInput(f"{setting} must be importable, but this run was given a {argument} from Python", own, remedy)


def _find_modules_here() -> None:
    """Lets this process and the actors it will start import from the working directory, as `python -m` does.

    The `rlhaiku` command is a script in `.venv/bin`, so Python looks for modules there instead.
    """
    here, path = os.getcwd(), os.environ.get("PYTHONPATH", "")
    if here not in sys.path:
        sys.path.insert(0, here)
    if here not in path.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, path)))
