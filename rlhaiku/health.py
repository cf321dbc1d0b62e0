"""What is wrong with a step, in words: signs that a run learns less than it could, and what to change."""

from collections.abc import Mapping
from dataclasses import dataclass

FLAT_SHARE = 0.5
TRUNCATED_SHARE = 0.25
LOGPROB_GAP = 0.02
"""Mean |trainer - rollout| per token: what bf16 engines may differ by; more is another model or temperature."""


@dataclass(frozen=True, slots=True)
class Advice:
    """One sign."""

    sign: str
    """What was seen, with its number."""
    remedy: str
    """What to change."""


def advise(row: Mapping[str, float]) -> dict[str, Advice]:
    """Advice for one row of `step_metrics`, by a name that stays the same while the sign lasts."""
    found = {}
    if (share := row["group/zero_variance_share"]) > FLAT_SHARE:
        found["flat"] = Advice(
            f"in {share:.0%} of the groups every completion earned the same, so they taught nothing",
            "the prompts are too easy or too hard by now: raise rollout.group_size or rollout.temperature, or stop",
        )
    if (share := row["completion/truncated_share"]) > TRUNCATED_SHARE:
        found["truncated"] = Advice(
            f"{share:.0%} of the completions were cut off at rollout.max_tokens", "raise it, or check the end token"
        )
    if (count := row["reward/unscored"]) > 0:
        found["unscored"] = Advice(
            f"{count:.0f} completions could not be scored and left their groups",
            "samples.jsonl has the reasons; a judge needs LLM_JUDGE_URL to answer, a reward function must not raise",
        )
    if (gap := row["train/logprob_gap"]) > LOGPROB_GAP:
        found["gap"] = Advice(
            f"trainer and engine disagree by {gap:.3f} per token about what was sampled",
            "they should hold the same weights and temperature: check the engine's precision and its weight version",
        )
    return found
