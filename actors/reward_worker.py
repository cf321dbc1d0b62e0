"""Scores groups in a process of its own, so that a slow reward never blocks generation or the coordinator."""

from collections.abc import Callable, Sequence

from rlhaiku.types import Group, Prompt, Reward, Scored, ScoredGroup, Unscored

RewardFn = Callable[[Prompt, str], float | Reward]
"""Scores one completion's text; a bare number is the total."""


class RewardWorker:
    """Applies one reward function to whole groups."""

    def __init__(self, reward: RewardFn) -> None:
        self._reward = reward

    def score(self, groups: Sequence[Group]) -> list[ScoredGroup]:
        """Every group with one reward per completion; what raised is `Unscored`, never 0."""
        return [
            ScoredGroup(group, tuple(self._score_one(group.prompt, c.text) for c in group.completions))
            for group in groups
        ]

    def _score_one(self, prompt: Prompt, text: str) -> Reward:
        try:
            reward = self._reward(prompt, text)
        except Exception as error:  # a user's function may raise anything; it is counted in reward/unscored
            return Unscored(f"{type(error).__name__}: {error}")
        return reward if isinstance(reward, Scored | Unscored) else Scored(float(reward))
