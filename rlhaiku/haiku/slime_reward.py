"""The reward as slime calls it: `--custom-rm-path rlhaiku.haiku.slime_reward.haiku_rm`. Imports nothing of slime."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, overload

from rlhaiku.haiku.reward import HaikuReward
from rlhaiku.types import Prompt


class Sample(Protocol):
    """What is read of slime's `Sample`."""

    @property
    def prompt(self) -> str | Sequence[Mapping[str, Any]]:
        """The rendered chat, or its messages."""

    @property
    def response(self) -> str:
        """The completion, template tokens included."""

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

    `args` may have `haiku_mode`, `default` or `seed`, and `haiku_topic_weight`; slime passes on what its custom
    configuration file sets. The topic and the reference come from the sample's metadata, the reference also from its
    label.
    """
    reward = HaikuReward(
        topic_weight=getattr(args, "haiku_topic_weight", 0.0), mode=getattr(args, "haiku_mode", "default")
    )
    if isinstance(sample, Sequence):
        return [_total(reward, each) for each in sample]
    return _total(reward, sample)


def _total(reward: HaikuReward, sample: Sample) -> float:
    metadata = sample.metadata or {}
    prompt = Prompt(
        prompt_id="slime",
        topic=str(metadata.get("topic") or ""),
        text=_prompt_text(sample.prompt),
        token_ids=(),
        reference=str(metadata.get("reference") or sample.label or ""),
    )
    return reward(prompt, sample.response).total


def _prompt_text(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(str(message.get("content", "")) for message in prompt)
