"""The reward as slime calls it: `--custom-rm-path rlhaiku.haiku.slime_reward.haiku_rm`. Imports nothing of slime.

The judge is the one of LLM_JUDGE_URL, if that is set. Its client belongs to the event loop that slime scores in.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, overload

from rlhaiku.errors import RunFailed
from rlhaiku.haiku.judged import poem_to_judge
from rlhaiku.haiku.reward import HaikuReward
from rlhaiku.judge import JudgeClient, Judgement, Unjudged, from_environment
from rlhaiku.types import Prompt

_clients: dict[asyncio.AbstractEventLoop, JudgeClient | None] = {}


class Sample(Protocol):
    """What is read of slime's `Sample`."""

    @property
    def prompt(self) -> str | Sequence[Mapping[str, Any]]:
        """The rendered chat, or its messages."""

    @property
    def response(self) -> str | None:
        """The completion, template tokens included; None if there is none."""

    @property
    def label(self) -> str | None:
        """The reference poem, if the data set has one."""

    @property
    def metadata(self) -> Mapping[str, Any] | None:
        """May hold `topic` and `reference`."""


@overload
async def haiku_rm(args: Any, sample: Sample, **kwargs: Any) -> float: ...  # noqa: ANN401
@overload
async def haiku_rm(args: Any, sample: Sequence[Sample], **kwargs: Any) -> list[float]: ...  # noqa: ANN401
async def haiku_rm(args: Any, sample: Sample | Sequence[Sample], **kwargs: Any) -> float | list[float]:
    """The total of one sample, or of each of a list, as slime calls it with `--group-rm`.

    `args` may have what `HaikuReward` has, with `haiku_` before it: `haiku_mode`, `haiku_gate`, `haiku_dictionary`,
    `haiku_topic_weight`; slime passes on what its custom configuration file sets. The topic and the reference come from
    the sample's metadata, the reference also from its label.

    Raises BadInput for a setting that there is not, and RunFailed if the judge gave a poem up: slime has no reward that
    means unknown, and none is made up here.
    """
    given = {name: getattr(args, f"haiku_{name}", None) for name in ("mode", "gate", "dictionary", "topic_weight")}
    reward = HaikuReward(**{name: value for name, value in given.items() if value is not None})
    samples = sample if isinstance(sample, Sequence) else [sample]
    totals = await _totals(reward, samples)
    return totals if isinstance(sample, Sequence) else totals[0]


async def close_judge() -> None:
    """Ends the connections of the running loop's judge client; the next call opens new ones."""
    if client := _clients.pop(asyncio.get_running_loop(), None):
        await client.close()


async def _totals(reward: HaikuReward, samples: Sequence[Sample]) -> list[float]:
    poems = [(_prompt(sample), sample.response or "") for sample in samples]
    scores = [reward.score_text(prompt, text) for prompt, text in poems]
    judge = _judge()
    asked = [i for i, score in enumerate(scores) if judge and score.gate_value > 0]
    judgements: dict[int, Judgement] = {}
    if judge and asked:
        judgements = dict(zip(asked, await judge.judge([poem_to_judge(*poems[i]) for i in asked]), strict=True))
    return [reward.total(score, _style(judgements.get(i))).total for i, score in enumerate(scores)]


def _style(judgement: Judgement | None) -> float | None:
    if isinstance(judgement, Unjudged):
        raise RunFailed(f"The judge gave a poem up: {judgement.reason}. See that LLM_JUDGE_URL answers, then resume.")
    return None if judgement is None else judgement.score


def _judge() -> JudgeClient | None:
    """The running loop's client, made at its first call; None without LLM_JUDGE_URL."""
    loop = asyncio.get_running_loop()
    if loop not in _clients:
        for ended in [other for other in _clients if other.is_closed()]:
            del _clients[ended]
        settings = from_environment()
        _clients[loop] = None if settings is None else JudgeClient(settings)
    return _clients[loop]


def _prompt(sample: Sample) -> Prompt:
    metadata = sample.metadata or {}
    return Prompt(
        prompt_id="slime",
        topic=str(metadata.get("topic") or ""),
        text=_prompt_text(sample.prompt),
        token_ids=(),
        reference=str(metadata.get("reference") or sample.label or ""),
    )


def _prompt_text(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(str(message.get("content", "")) for message in prompt)
