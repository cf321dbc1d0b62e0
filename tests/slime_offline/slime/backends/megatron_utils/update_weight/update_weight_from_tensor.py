"""Each rank sends to the engine that shares its card, behind pauses and barriers in slime's order."""

import json
import zlib

import ray
import torch.distributed as dist
from slime.backends.megatron_utils.megatron_to_hf import convert_to_hf
from slime.backends.megatron_utils.update_weight.common import named_params_and_buffers


class UpdateWeightFromTensor:
    def __init__(self, args, model, weights_getter, *, model_name, quantization_config):
        self.args, self.model, self.model_name, self.weight_version = args, model, model_name, 0

    def connect_rollout_engines(self, rollout_engines, rollout_engine_lock, engine_gpu_counts=None,
                                engine_gpu_offsets=None, engine_parallel_configs=None):
        self.rollout_engines = rollout_engines
        [self._engine] = [
            engine for engine, start in zip(rollout_engines, engine_gpu_offsets, strict=True)
            if start == dist.get_rank()
        ] or [None]

    def update_weights(self):
        self.weight_version += 1
        if dist.get_rank() == 0:
            ray.get([engine.pause_generation.remote() for engine in self.rollout_engines])
            ray.get([engine.flush_cache.remote() for engine in self.rollout_engines])
        dist.barrier()
        if self._engine is not None:
            payload = json.dumps(hashes(self.args, self.model, self.model_name))
            ray.get(self._engine.update_weights_from_tensor.remote(
                serialized_named_tensors=[payload], load_format="flattened_bucket",
                weight_version=str(self.weight_version),
            ))
        dist.barrier()
        if dist.get_rank() == 0:
            ray.get([engine.continue_generation.remote() for engine in self.rollout_engines])
        dist.barrier()


def hashes(args, model, model_name):
    """What engines will report: q, k and v are one tensor there."""
    held = {}
    for name, param in named_params_and_buffers(args, model):
        [(hf_name, _), *rest] = convert_to_hf(args, model_name, name, param.data)
        held[hf_name.replace("q_proj", "qkv_proj") if rest else hf_name] = \
            f"{zlib.crc32(param.data.contiguous().numpy().tobytes()):016x}"
    return held
