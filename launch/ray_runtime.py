"""Starting and stopping Ray for a run on this machine, and every environment variable that takes."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # this cluster listens on loopback only; a stray ~/.ray/auth_token must not decide
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leave CUDA_VISIBLE_DEVICES of CPU actors alone, without a warning
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_WAIT_POLICY": "PASSIVE",  # engines and trainer take turns on the same cores: who waits must not spin
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""Set for this process and inherited by every actor; a value the user has set wins."""

OBJECT_STORE_BYTES = 128 * 1024 * 1024
"""Groups and batches are small, and weights never pass through the object store."""


@contextmanager
def local_ray(num_cpus: int, num_gpus: int = 0) -> Iterator[None]:
    """A private Ray of this machine with so many CPU slots and GPUs, or the one the caller has already initialized.

    Its files live in a short temporary directory (socket paths end at 107 characters), removed at the end and kept when
    the run fails, for its logs.
    """
    import ray  # not above: Ray reads parts of the environment once, when it is imported

    if ray.is_initialized():
        yield
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    directory = tempfile.mkdtemp(prefix="rlh-", dir="/tmp" if os.path.isdir("/tmp") else None)
    try:
        ray.init(
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=directory,
        )
        yield
    except BaseException as error:
        error.add_note(f"The actors' logs are in {directory}/session_latest/logs.")
        ray.shutdown()
        raise
    ray.shutdown()
    shutil.rmtree(directory, ignore_errors=True)
