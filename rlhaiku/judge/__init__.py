"""A client for an LLM judge behind an OpenAI-compatible endpoint; its failures never become scores.

To use another rubric, give `JudgeClient` an object with the methods of `Rubric`, or what `load_rubric` returns.
"""

from rlhaiku.judge.asking import JudgeRefused
from rlhaiku.judge.client import JudgeClient
from rlhaiku.judge.parsing import Judged, Judgement, Unjudged
from rlhaiku.judge.rubric import HaikuRubric, PoemToJudge, Rubric, as_rubric, load_rubric
from rlhaiku.judge.settings import JudgeSettings, from_environment
from rlhaiku.judge.stats import JudgeStats

__all__ = [
    "HaikuRubric",
    "JudgeClient",
    "JudgeRefused",
    "JudgeSettings",
    "JudgeStats",
    "Judged",
    "Judgement",
    "PoemToJudge",
    "Rubric",
    "Unjudged",
    "as_rubric",
    "from_environment",
    "load_rubric",
]
