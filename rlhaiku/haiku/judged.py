"""A poem as the judge gets it. Apart from `reward`, which needs no HTTP client."""

from rlhaiku.haiku.structure import strip_template
from rlhaiku.judge import PoemToJudge
from rlhaiku.types import Prompt


def poem_to_judge(prompt: Prompt, completion: str) -> PoemToJudge:
    """Of a completion's text, which may still have the chat template's tokens."""
    return PoemToJudge(prompt.topic, strip_template(completion).strip(), prompt.reference)
