"""Rank 0 sends to all engines, holding the lock meanwhile."""

import json
import time

import ray
import torch.distributed as dist
from slime.backends.megatron_utils.update_weight.update_weight_from_tensor import hashes


class UpdateWeightFromDistributed:
    def __init__(self, args, model, weights_getter, *, model_name, quantization_config):
        self.args, self.model, self.model_name, self.weight_version = args, model, model_name, 0

    def connect_rollout_engines(self, rollout_engines, rollout_engine_lock, engine_gpu_counts=None,
                                engine_gpu_offsets=None, engine_parallel_configs=None):
        self.rollout_engines, self.lock = rollout_engines, rollout_engine_lock
        if dist.get_rank() == 0:
            size = len(rollout_engines) + 1
            ray.get([
                engine.init_weights_update_group.remote("127.0.0.1", 1, 1 + place, size, "slime", "nccl")
                for place, engine in enumerate(rollout_engines)
            ])

    def update_weights(self):
        self.weight_version += 1
        if dist.get_rank() == 0:
            ray.get([engine.pause_generation.remote() for engine in self.rollout_engines])
            ray.get([engine.flush_cache.remote() for engine in self.rollout_engines])
        dist.barrier()
        if dist.get_rank() == 0:
            while not ray.get(self.lock.acquire.remote()):
                time.sleep(0.1)
            payload = json.dumps(hashes(self.args, self.model, self.model_name))
            ray.get([
                engine.update_weights_from_distributed.remote(
                    names=[], dtypes=[], shapes=[], group_name="slime", weight_version=str(self.weight_version),
                    load_format=payload,
                )
                for engine in self.rollout_engines
            ])
            ray.get(self.lock.release.remote())
        dist.barrier()
        if dist.get_rank() == 0:
            ray.get([engine.continue_generation.remote() for engine in self.rollout_engines])
        dist.barrier()
