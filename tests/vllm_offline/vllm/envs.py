"""The one variable that matters here, frozen like vLLM's when an engine starts in this process."""

import os

_frozen = None


def __getattr__(name):
    if name != "VLLM_ENABLE_V1_MULTIPROCESSING":
        raise AttributeError(name)
    return bool(int(os.environ.get(name, "1"))) if _frozen is None else _frozen


def enable_envs_cache():
    global _frozen
    if _frozen is None:
        _frozen = __getattr__("VLLM_ENABLE_V1_MULTIPROCESSING")


def disable_envs_cache():
    global _frozen
    _frozen = None
