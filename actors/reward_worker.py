"""Scores groups in a process of its own, so that a slow reward never blocks generation or the coordinator."""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import fsum
from typing import Self

from actors.user_reward import Poem, UserReward, as_reward, call
from rlhaiku.haiku.judged import poem_to_judge
from rlhaiku.haiku.reward import HaikuReward, PoemScore
from rlhaiku.judge import JudgeClient, Judged, Judgement, JudgeSettings, Rubric
from rlhaiku.types import Prompt, Reward, Scored, Unscored

RewardFn = Callable[[Prompt, str], float | Reward | Awaitable[float | Reward]]
"""Scores one completion's text; a bare number is the total. `async def` functions are awaited side by side."""

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
    timeout_s: float = 60.0
    """Longest time for one poem in a function that is not ours."""
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
INLINE_BELOW = 2048
"""Poems; fewer are scored in the driver's process, where that is allowed: on two cores that also run Ray, carrying them
to workers does not reliably pay earlier (benchmarks/reward_pool.py)."""
MOST_LEFT_BEHIND = 8
"""Threads that hang in a user's function before a worker ends itself, and another starts in its place."""


class RewardWorker:
    """Applies reward functions to poems, and asks the judge about those whose gate is open."""

    def __init__(self, spec: RewardSpec) -> None:
        self._spec = spec
        self._judge: JudgeClient | None = None
        self._users = {
            i: UserReward(function, spec.timeout_s)
            for i, (function, _) in enumerate(spec.functions)
            if not isinstance(function, HaikuReward)
        }
        self._calls = 0
        self._signs = 0

    async def score(self, poems: Sequence[PromptedTexts]) -> RewardTable:
        """One reward per text, in order; what raised or was not judged is `Unscored`, never 0."""
        if sum(user.left_behind for user in self._users.values()) >= MOST_LEFT_BEHIND:
            os._exit(1)  # the pool starts another; no softer way waits for no thread
        return RewardTable.of(await self.rewards([(prompt, text) for prompt, texts in poems for text in texts]))

    async def rewards(self, poems: Sequence[Poem]) -> list[Reward]:
        """The reward of each poem."""
        columns = []
        for i, (function, _) in enumerate(self._spec.functions):
            if i in self._users:
                columns.append(await self._score_by_user(self._users[i], poems))
            elif self._spec.judge and isinstance(function, HaikuReward):
                columns.append(await self._score_with_style(function, poems))
            else:
                columns.append(_column(function, poems))
        return self._combined(columns)

    def rewards_now(self, poems: Sequence[Poem]) -> list[Reward]:
        """The same without a judge and without deadlines, in the calling process."""
        return self._combined([_column(function, poems) for function, _ in self._spec.functions])

    async def is_paused(self) -> bool:
        """Whether its silence has a reason with a deadline of its own, so that it is no hang.

        That is a user's function at work, a judge that is away or asks for patience, or one that has answered, or was
        asked something, since the last time this was called: such a judge is slow.
        """
        before, self._signs = self._signs, self._judge.signs if self._judge else 0
        judge_waits = self._judge is not None and self._judge.is_waiting
        return self._calls > 0 or judge_waits or self._signs > before

    async def signs(self) -> int:
        """Grows with every question and answer of the judge and every call of a user's function."""
        return (self._judge.signs if self._judge else 0) + sum(user.finished for user in self._users.values())

    async def stats(self) -> dict[str, float]:
        """What the judge client has counted so far; empty without a judge."""
        if self._judge is None:
            return {}
        return {name: float(value) for name, value in asdict(self._judge.stats()).items() if name != "breaker"}

    async def _score_by_user(self, user: UserReward, poems: Sequence[Poem]) -> list[Reward]:
        self._calls += 1
        try:
            return await user.score(poems)
        finally:
            self._calls -= 1

    async def _score_with_style(self, reward: HaikuReward, poems: Sequence[Poem]) -> list[Reward]:
        scores = [reward.score_text(prompt, text) for prompt, text in poems]
        asked = [i for i, score in enumerate(scores) if score.gate_value > 0]
        judgements = await self._client().judge([poem_to_judge(*poems[i]) for i in asked])
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


def _column(function: RewardFn, poems: Sequence[Poem]) -> list[Reward]:
    """The function's reward of each poem; what fails is Unscored."""
    if isinstance(function, HaikuReward):
        with suppress(Exception):  # its numbers are finite; should it ever raise, the line below says for which poem
            return [function(prompt, text) for prompt, text in poems]
    return [as_reward(call(function, poem)) for poem in poems]


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


def merge_stats(snapshots: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One row of several workers' judge counters.

    Counts are added; the median latency and the validity are means, weighted by the answers they are about; of the
    99th percentiles the largest stands, which the one of all answers together does not exceed.
    """
    present = [snapshot for snapshot in snapshots if snapshot]
    if not present:
        return {}
    merged = {name: fsum(snapshot[name] for snapshot in present) for name in present[0]}
    weights = [snapshot["answers"] for snapshot in present]
    for name in ("latency_p50_s", "validity"):
        weighted = fsum(snapshot[name] * weight for snapshot, weight in zip(present, weights, strict=True))
        merged[name] = weighted / fsum(weights) if any(weights) else present[0][name]
    return merged | {"latency_p99_s": max(snapshot["latency_p99_s"] for snapshot in present)}
