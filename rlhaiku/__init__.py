"""rlhaiku teaches a language model to write 5-7-5 haiku with GRPO, on explicit Ray actors.

This package is the algorithm and the contracts; it never imports ray, and importing it never loads torch.
`actors` is where it runs, `launch` is how it starts.
"""

from rlhaiku.config import RunConfig, load_config
from rlhaiku.errors import BadInput, RlhaikuError, RunFailed
from rlhaiku.types import Completion, Group, Prompt, Scored, ScoredGroup, Unscored

__all__ = [
    "BadInput",
    "Completion",
    "Group",
    "Prompt",
    "RlhaikuError",
    "RunConfig",
    "RunFailed",
    "Scored",
    "ScoredGroup",
    "Unscored",
    "load_config",
]
