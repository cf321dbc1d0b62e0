"""Scores groups in a process of its own, so that a slow reward never blocks generation or the coordinator."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import fsum
from typing import Self

from rlhaiku.haiku.reward import HaikuReward, PoemScore
from rlhaiku.haiku.structure import strip_template
from rlhaiku.judge import JudgeClient, Judged, Judgement, JudgeSettings, PoemToJudge, Rubric
from rlhaiku.types import Prompt, Reward, Scored, Unscored

RewardFn = Callable[[Prompt, str], float | Reward]
"""Scores one completion's text; a bare number is the total."""

Poem = tuple[Prompt, str]
PromptedTexts = tuple[Prompt, tuple[str, ...]]
"""A prompt and the texts of its completions: all a reward may look at, so all that is sent."""


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """Everything a worker needs to start, or to start again after it died."""

    functions: tuple[tuple[RewardFn, float], ...]
    """Reward functions and their weights; the total is the weighted sum of their totals."""
    judge: JudgeSettings | None = None
    """Where the judge is, without its key: a worker takes that from its own environment."""
    rubric: Rubric | None = None
    """How the judge is asked; None is the default rubric."""
    inline: bool = True
    """Whether the coordinator's own process may score a few poems, if the functions are quick enough for that."""


@dataclass(frozen=True, slots=True)
class RewardTable:
    """Rewards on their way from a worker to the pool, by column: a tenth of the bytes and time of as many `Scored`."""

    totals: list[float]
    names: tuple[str, ...]
    """Components that occur, in order."""
    rows: list[tuple[float | None, ...]]
    """Per reward its components, parallel to `names`; None where it has none of that name."""
    reasons: dict[int, str]
    """Rewards that are unscored, by index."""

    @classmethod
    def of(cls, rewards: Sequence[Reward]) -> Self:
        """Packs rewards."""
        scored = [reward if isinstance(reward, Scored) else _NOTHING for reward in rewards]
        names = tuple(dict.fromkeys(name for reward in scored for name in reward.components))
        return cls(
            [reward.total for reward in scored],
            names,
            [tuple([reward.components.get(name) for name in names]) for reward in scored],
            {i: reward.reason for i, reward in enumerate(rewards) if isinstance(reward, Unscored)},
        )

    def rewards(self) -> list[Reward]:
        """Unpacks them."""
        unpacked: list[Reward] = [
            Scored(total, {name: value for name, value in zip(self.names, row, strict=True) if value is not None})
            for total, row in zip(self.totals, self.rows, strict=True)
        ]
        for i, reason in self.reasons.items():
            unpacked[i] = Unscored(reason)
        return unpacked


_NOTHING = Scored(0.0)


class RewardWorker:
    """Applies reward functions to poems, and asks the judge about those whose gate is open."""

    def __init__(self, spec: RewardSpec) -> None:
        self._spec = spec
        self._judge: JudgeClient | None = None

    async def score(self, poems: Sequence[PromptedTexts]) -> RewardTable:
        """One reward per text, in order; what raised or was not judged is `Unscored`, never 0."""
        return RewardTable.of(await self.rewards([(prompt, text) for prompt, texts in poems for text in texts]))

    async def rewards(self, poems: Sequence[Poem]) -> list[Reward]:
        """The reward of each poem."""
        columns = []
        for function, _ in self._spec.functions:
            if self._spec.judge and isinstance(function, HaikuReward):
                columns.append(await self._score_with_style(function, poems))
            else:
                columns.append([_score_one(function, poem) for poem in poems])
        return self._combined(columns)

    def rewards_now(self, poems: Sequence[Poem]) -> list[Reward]:
        """The same without a judge, in the calling process."""
        return self._combined([[_score_one(function, poem) for poem in poems] for function, _ in self._spec.functions])

    async def is_paused(self) -> bool:
        """Whether the judge is away, so that poems wait for it."""
        return self._judge is not None and self._judge.stats().breaker == "open"

    async def stats(self) -> dict[str, float]:
        """What the judge client has counted so far; empty without a judge."""
        if self._judge is None:
            return {}
        return {name: float(value) for name, value in asdict(self._judge.stats()).items() if name != "breaker"}

    async def _score_with_style(self, reward: HaikuReward, poems: Sequence[Poem]) -> list[Reward]:
        scores = [reward.score_text(prompt, text) for prompt, text in poems]
        asked = [i for i, score in enumerate(scores) if score.gate_value > 0]
        judgements = await self._client().judge([_to_judge(*poems[i]) for i in asked])
        style: dict[int, Judgement] = dict(zip(asked, judgements, strict=True))
        return [_with_style(reward, score, style.get(i)) for i, score in enumerate(scores)]

    def _client(self) -> JudgeClient:
        """Made on first use, since it belongs to the event loop that the actor runs in."""
        if self._judge is None:
            assert self._spec.judge is not None
            key = os.environ.get("LLM_JUDGE_API_KEY", "").strip()
            self._judge = JudgeClient(replace(self._spec.judge, api_key=key), self._spec.rubric)
        return self._judge

    def _combined(self, columns: Sequence[Sequence[Reward]]) -> list[Reward]:
        weights = [weight for _, weight in self._spec.functions]
        if weights == [1.0]:
            return list(columns[0])
        return [_combine(row, weights) for row in zip(*columns, strict=True)]


def _score_one(function: RewardFn, poem: Poem) -> Reward:
    try:
        reward = function(*poem)
    except Exception as error:  # a user's function may raise anything; it is counted in reward/unscored
        return Unscored(f"{type(error).__name__}: {error}")
    return reward if isinstance(reward, Scored | Unscored) else Scored(float(reward))


def _to_judge(prompt: Prompt, text: str) -> PoemToJudge:
    return PoemToJudge(prompt.topic, strip_template(text).strip(), prompt.reference)


def _with_style(reward: HaikuReward, score: PoemScore, judgement: Judgement | None) -> Reward:
    """A closed gate leaves the style unknown and out of the total; a failed judgement leaves the reward unknown."""
    if judgement is None:
        return reward.total(score)
    if isinstance(judgement, Judged):
        return reward.total(score, judgement.score)
    return Unscored(f"judge: {judgement.reason}")


def _combine(rewards: Sequence[Reward], weights: Sequence[float]) -> Reward:
    """The weighted sum of several functions' rewards; unknown if one of them is."""
    components: dict[str, float] = {}
    totals = []
    for reward, weight in zip(rewards, weights, strict=True):
        if isinstance(reward, Unscored):
            return reward
        totals.append(weight * reward.total)
        components |= reward.components
    return Scored(fsum(totals), components)


def mean_stats(snapshots: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One row of several workers' counters: counts are added, latencies and shares averaged."""
    present = [snapshot for snapshot in snapshots if snapshot]
    names = present[0] if present else {}
    return {
        name: fsum(s[name] for s in present) / (len(present) if name.startswith("latency") or name == "validity" else 1)
        for name in names
    }
