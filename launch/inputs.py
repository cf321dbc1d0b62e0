"""What decides a run's weights, by digest: a resume with other inputs says so, or is refused."""

import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.reward_worker import RewardSpec
from rlhaiku import haiku
from rlhaiku.config import RunConfig, fingerprint
from rlhaiku.errors import BadInput
from rlhaiku.types import Prompt

FIXED = ("seed", "data")
"""These decide which prompt a claim is: with others, a resumed run would train some prompts twice and others never."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What an attempt computes its weights from."""

    config: RunConfig
    prompts: Sequence[Prompt]
    reward: RewardSpec

    def fingerprint(self) -> str:
        """Digests by name, as JSON: the ledger keeps them, and replays rollouts only where all are equal."""
        return json.dumps(self._digests(), sort_keys=True)

    def changed_since(self, before: str) -> list[str]:
        """Names of what differs from another attempt's fingerprint; nothing if that one is empty."""
        ours, theirs = self._digests(), _read(before)
        if before and not theirs:
            return ["rlhaiku"]
        return [name for name, digest in theirs.items() if ours.get(name) != digest]

    def check_resumable(self, before: str) -> None:
        """Raises BadInput if a claim would be another prompt than in the attempt of that fingerprint."""
        for name in self.changed_since(before):
            if name in FIXED:
                value = self.config.seed if name == "seed" else self.config.data.path
                rule = f"a resumed run must have the {name} it began with"
                raise BadInput(rule, value, "Bring it back, or start a new run with --output-dir.")

    def _digests(self) -> dict[str, str]:
        rows = [(p.prompt_id, p.topic, p.text, p.reference) for p in self.prompts]
        functions = [(_code(function), weight) for function, weight in self.reward.functions]
        rubric = self.reward.rubric
        return {
            "settings": fingerprint(self.config),
            "seed": str(self.config.seed),
            "data": _sha256(rows),
            "reward": _sha256(functions),
            "judge": _sha256([self.reward.judge is not None, rubric and (rubric.version, _code(rubric))]),
        }


def _code(thing: object) -> str:
    """A function's or an object's source, and of what is ours all that it stands on; its name where Python has none."""
    named = thing if inspect.isfunction(thing) or inspect.isclass(thing) else type(thing)
    if named.__module__.startswith(f"{haiku.__name__}."):
        return "".join(file.read_text(encoding="utf-8") for file in sorted(Path(haiku.__file__).parent.glob("*.py")))
    try:
        return inspect.getsource(named)
    except (OSError, TypeError):
        return f"{named.__module__}.{named.__qualname__}"


def _read(before: str) -> dict[str, str]:
    """The digests of a fingerprint; none if an earlier version wrote it, as one hash."""
    try:
        read: dict[str, str] = json.loads(before)
    except ValueError:
        return {}
    return read


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
