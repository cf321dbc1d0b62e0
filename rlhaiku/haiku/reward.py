"""What a poem earns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, get_args

from rlhaiku.errors import BadInput
from rlhaiku.haiku.dictionary import DictionaryName, load_dictionary
from rlhaiku.haiku.legitimacy import PARTS, score_legitimacy
from rlhaiku.haiku.seed_mode import seed_structure
from rlhaiku.haiku.structure import score_structure
from rlhaiku.haiku.topic import mentions_topic, names_topic
from rlhaiku.types import Prompt, Scored

Mode = Literal["default", "seed"]
Gate = Literal["perfect", "soft", "off"]

MAX_TOPIC_WEIGHT = 0.125
"""Below it, 5-7-5 that leaves the topic out earns more than the best near miss, 7 eighths, that names it."""

_LOGGED_AS = {name: f"legitimacy/{name}" for name in PARTS}


@dataclass(frozen=True, slots=True)
class PoemScore:
    """What can be said of a poem without a judge."""

    structure: float
    """How close it is to 5-7-5, in [0, 1]."""
    legitimacy: float
    """Whether it is made of language, in [0, 1]."""
    topic: float | None
    """Whether it names its topic, 0 or 1; None if nobody looked."""
    gate_value: float
    """How far the gate for the judge's style score is open, in [0, 1]."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """What else is known, by the name under which it is logged: `legitimacy/...`, `extra_lines`, `oov_share`."""

    @property
    def earned(self) -> float:
        """structure x legitimacy: what the gate and every learning goal look at."""
        return self.structure * self.legitimacy

    def components(self) -> dict[str, float]:
        """Everything by name, for metrics and reports."""
        return {
            "structure": self.structure,
            "legitimacy": self.legitimacy,
            **self.parts,
            "strict": float(self.earned == 1.0),
            **({} if self.topic is None else {"topic": self.topic}),
        }


@dataclass(frozen=True, slots=True)
class HaikuReward:
    """Scores one completion of one prompt.

    The contract is `total = structure x legitimacy + gate x style`, in [0, 2]; here are the terms that need no judge.
    A poem whose lines do not name the topic loses the share `topic_weight`, at most an eighth, of the first term, so
    that no weight makes a malformed text better than a well-formed one. `mode="seed"` is the tutorial's reward: its
    structure score, and a legitimacy of 1 whatever the text; it looks for the topic only if that has a weight.

    Raises BadInput for a mode, gate, dictionary or weight that there is not.
    """

    topic_weight: float = 0.0
    mode: Mode = "default"
    gate: Gate = "perfect"
    """`perfect` opens for poems that earn 1, `soft` by the square of what they earn, `off` is always open."""
    dictionary: DictionaryName = "bundled"

    def __post_init__(self) -> None:
        for name, known in (("mode", Mode), ("gate", Gate), ("dictionary", DictionaryName)):
            if (value := getattr(self, name)) not in get_args(known):
                raise BadInput(f"{name} must be one of {', '.join(get_args(known))}", value, "Choose one of them.")
        if not 0 <= self.topic_weight < MAX_TOPIC_WEIGHT:
            rule = f"topic_weight must be at least 0 and below {MAX_TOPIC_WEIGHT}"
            raise BadInput(rule, self.topic_weight, "With more, a malformed text could earn more than a poem.")

    def __call__(self, prompt: Prompt, text: str) -> Scored:
        """Scores `text`, a completion of `prompt`, without a judge."""
        if self.mode == "seed" and not self.topic_weight:
            return _seed_reward(seed_structure(text, load_dictionary(self.dictionary)))
        return self.total(self.score_text(prompt, text))

    def total(self, score: PoemScore, style: float | None = None) -> Scored:
        """The reward of a score; `style` in [0, 1] is the judge's word, None where nobody asked it.

        The components are those of `PoemScore.components`, and `style` if there is one.
        """
        total = score.earned * (1 - self.topic_weight * (1 - (score.topic or 0.0)))
        if style is None:
            return Scored(total, score.components())
        return Scored(total + score.gate_value * style, score.components() | {"style": style})

    def score_text(self, prompt: Prompt, text: str) -> PoemScore:
        """The terms of the reward that need no judge."""
        return self._seed(prompt, text) if self.mode == "seed" else self._default(prompt, text)

    def _default(self, prompt: Prompt, text: str) -> PoemScore:
        structure = score_structure(text, load_dictionary(self.dictionary))
        legitimacy = score_legitimacy(structure.poem, (prompt.text, prompt.reference))
        spoken = [word.text for line in structure.poem for word in line.words]
        parts = {_LOGGED_AS[name]: value for name, value in legitimacy.parts.items()}
        parts["extra_lines"] = float(structure.extra_lines)
        parts["oov_share"] = legitimacy.oov_share
        return PoemScore(
            structure.total,
            legitimacy.total,
            topic=float(names_topic(spoken, prompt.topic)),
            gate_value=_gate_value(self.gate, structure.total * legitimacy.total),
            parts=parts,
        )

    def _seed(self, prompt: Prompt, text: str) -> PoemScore:
        structure = seed_structure(text, load_dictionary(self.dictionary))
        topic = float(mentions_topic(text, prompt.topic)) if self.topic_weight else None
        return PoemScore(structure, 1.0, topic, _gate_value(self.gate, structure))


@cache
def _seed_reward(structure: float) -> Scored:
    """The tutorial's reward: it has nine values, so that a poem need not make one of its own."""
    return Scored(structure, {"structure": structure, "legitimacy": 1.0, "strict": float(structure == 1.0)})


def _gate_value(gate: Gate, earned: float) -> float:
    if gate == "perfect":
        return float(earned == 1.0)
    return earned**2 if gate == "soft" else 1.0
