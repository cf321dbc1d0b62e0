"""Shared by all tests: deterministic property tests, and skips that say what is missing."""

import os
import shutil
import tempfile

import pytest
from hypothesis import settings

os.environ.setdefault("RAY_worker_niceness", "0")  # with JOBS tests run side by side: neither's actors may give way
settings.register_profile("rlhaiku", derandomize=True, deadline=None)
settings.load_profile("rlhaiku")


def pytest_collection_modifyitems(items):
    """Skips what this machine cannot run, with the reason."""
    missing = {"gpu": _no_gpu(), "slime": _no_slime(), "netns": _no_netns()}
    for item in items:
        for marker, reason in missing.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def _no_netns():
    return None if shutil.which("ip") and os.geteuid() == 0 else "needs root and iproute2"


def _no_gpu():
    import torch

    return None if torch.cuda.is_available() else "needs an NVIDIA GPU"


def _no_slime():
    from importlib.util import find_spec

    return None if find_spec("slime") and find_spec("megatron") else "needs slime and Megatron"


@pytest.fixture(scope="session")
def cluster():
    """One real Ray for all tests that need one: starting it takes longer than they do."""
    import ray

    from launch.ray_runtime import ENVIRONMENT, OBJECT_STORE_BYTES

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    directory = tempfile.mkdtemp(prefix="rlt-", dir="/tmp")
    ray.init(
        num_cpus=8, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        object_store_memory=OBJECT_STORE_BYTES, _temp_dir=directory,
    )
    yield
    ray.shutdown()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """A whole run of seconds: four steps of a tiny model on ten one-word topics."""
    from rlhaiku.config import config_from_dict
    from rlhaiku.haiku.dataset import Row, prepare_rows
    from tests.tiny import save_tiny_model

    root = tmp_path_factory.mktemp("inputs")
    rows = [
        Row(
            prompt_id=f"t/{i}", topic=topic, theme="test", reference="", split="test" if i % 3 == 0 else "train",
            messages=[{"role": "user", "content": topic}],
        )
        for i, topic in enumerate(["ash", "bee", "cat", "dog", "elm", "fox", "gnu", "hen", "ivy", "jay"])
    ]
    prepare_rows(rows, root / "data", source="test", split_rule="every third")
    return config_from_dict({
        "num_steps": 4,
        "model": {"path": str(save_tiny_model(root / "model"))},
        "data": {"path": str(root / "data")},
        "rollout": {"groups_per_step": 6, "group_size": 3, "tile_groups": 2, "max_tokens": 10},
        "trainer": {"lr": 1e-2, "threads": 1},
        "evaluation": {"interval": 2, "samples_per_prompt": 2, "max_tokens": 10},
        "output": {"save_interval": 2, "poems_interval": 1},
        "cluster": {"wait_timeout_s": 120.0},
    })
