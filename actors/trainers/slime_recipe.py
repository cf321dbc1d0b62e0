"""How slime starts its actors: the environment each kind needs, and the lock that its trainers take."""

import os
from typing import Any

ENGINE_ENVIRONMENT = {
    "SGLANG_JIT_DEEPGEMM_PRECOMPILE": "false",
    "SGLANG_JIT_DEEPGEMM_FAST_WARMUP": "true",
    "SGLANG_DISABLE_TP_MEMORY_INBALANCE_CHECK": "true",  # a trainer is on the same card
    "SGL_DISABLE_TP_MEMORY_INBALANCE_CHECK": "true",
    "SGLANG_MEMORY_SAVER_CUDA_GRAPH": "true",
    "SGLANG_BATCH_INVARIANT_OPS_ENABLE_MM_FALLBACK_VARIANT": "true",
    "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false",
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE": "false",
}
TRAINER_ENVIRONMENT = {
    "NCCL_CUMEM_ENABLE": "0",  # SGLang sets it so; both sides of a broadcast must agree
    "NVTE_FP8_BLOCK_SCALING_FP32_SCALES": "1",
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # Megatron orders communication and computation by it
}
"""What the user has set wins."""


def engine_environment() -> dict[str, str]:
    """Variables of an engine's process."""
    return _environment(ENGINE_ENVIRONMENT)


def trainer_environment() -> dict[str, str]:
    """Variables of a trainer rank's process."""
    return _environment(TRAINER_ENVIRONMENT)


def new_lock() -> Any:  # noqa: ANN401  (a Ray handle)
    """slime's lock, which keeps two updates over NCCL from waiting for each other, held by nobody."""
    from slime.ray.utils import Lock

    return Lock.options(num_cpus=0).remote()


def _environment(own: dict[str, str]) -> dict[str, str]:
    """Ray must leave the visible devices alone: slime counts them itself, as those of the whole node."""
    from slime.ray.utils import NOSET_VISIBLE_DEVICES_ENV_VARS_LIST, add_default_ray_env_vars

    seen = dict.fromkeys(NOSET_VISIBLE_DEVICES_ENV_VARS_LIST, "1")
    merged: dict[str, str] = add_default_ray_env_vars(
        seen | {name: os.environ.get(name, value) for name, value in own.items()}
    )
    return merged
