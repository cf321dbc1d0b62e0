"""What a poem earns."""

from dataclasses import dataclass

from rlhaiku.haiku.structure import score_structure, strip_template
from rlhaiku.haiku.topic import mentions_topic
from rlhaiku.types import Prompt, Scored


@dataclass(frozen=True, slots=True)
class HaikuReward:
    """Scores one completion of one prompt.

    The contract is `total = structure x legitimacy + gate x style`, in [0, 2]. Here are the terms that need no judge:
    structure, with a legitimacy of 1, and whether the topic is named. The topic is a reported extra term outside the
    contract: it adds `topic_weight` to the total of a poem that names it, 0 by default.
    """

    topic_weight: float = 0.0

    def __call__(self, prompt: Prompt, text: str) -> Scored:
        """Scores `text`, a completion of `prompt`. Components: `structure` in [0, 1], `strict` and `topic` 0 or 1."""
        structure = score_structure(text)
        topic = float(mentions_topic(strip_template(text), prompt.topic))
        return Scored(
            total=structure.total + self.topic_weight * topic,
            components={"structure": structure.total, "strict": float(structure.strict), "topic": topic},
        )
