"""Whether the Triton kernels are used; where they cannot be, or are not wanted, torch does the same in more launches.
"""

import os
import shutil
from functools import cache
from importlib.util import find_spec

import torch


@cache
def has_kernels() -> bool:
    """On an NVIDIA GPU with Triton and the C compiler it needs, but for RLHAIKU_KERNELS=0.

    With Liger's, which go by this too, they are worth 1.46 x in rollouts and 1.18 x in train steps of Qwen3-4B's shape
    (benchmarks/RESULTS.md).
    """
    if os.environ.get("RLHAIKU_KERNELS", "1") == "0" or not torch.cuda.is_available() or torch.version.hip:
        return False
    has_compiler = "CC" in os.environ or any(map(shutil.which, ("cc", "gcc", "clang")))
    return has_compiler and find_spec("triton") is not None
