"""Whether the Triton kernels are used; where they cannot be, or are not wanted, torch does the same in more launches.
"""

import os
from functools import cache
from importlib.util import find_spec

import torch


@cache
def has_kernels() -> bool:
    """On an NVIDIA GPU with Triton, if RLHAIKU_KERNELS=1: they work there, but what they gain is not measured."""
    is_wanted = os.environ.get("RLHAIKU_KERNELS", "0") == "1"
    return is_wanted and torch.cuda.is_available() and find_spec("triton") is not None
