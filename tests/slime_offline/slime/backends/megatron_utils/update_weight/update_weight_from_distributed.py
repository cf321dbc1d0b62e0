"""Rank 0 broadcasts to all engines in a group with them, holding the lock meanwhile."""

import json
import os
import random
import signal
import time

import ray
import torch.distributed as dist
from slime.backends.megatron_utils.megatron_to_hf import convert_to_hf
from slime.backends.megatron_utils.update_weight.common import named_params_and_buffers
from slime.ray.ray_actor import RayActor
from slime.record import DIRECTORY, switched
from slime.utils.distributed_utils import init_process_group


class UpdateWeightFromDistributed:
    def __init__(self, args, model, weights_getter, *, model_name, quantization_config):
        self.args, self.model, self.model_name, self.weight_version = args, model, model_name, 0

    def connect_rollout_engines(self, rollout_engines, rollout_engine_lock, engine_gpu_counts=None,
                                engine_gpu_offsets=None, engine_parallel_configs=None):
        self.rollout_engines, self.lock = rollout_engines, rollout_engine_lock
        if dist.get_rank() == 0:
            size = len(rollout_engines) + 1
            _, port = RayActor._get_current_node_ip_and_free_port(random.randint(21000, 22000))
            asked = [
                engine.init_weights_update_group.remote("127.0.0.1", port, 1 + place, size, "slime", "gloo")
                for place, engine in enumerate(rollout_engines)
            ]
            self.group = init_process_group("gloo", f"tcp://127.0.0.1:{port}", size, 0, "slime")
            ray.get(asked)

    def update_weights(self):
        self.weight_version += 1
        if dist.get_rank() == 0:
            ray.get([engine.pause_generation.remote() for engine in self.rollout_engines])
            ray.get([engine.flush_cache.remote() for engine in self.rollout_engines])
        dist.barrier()
        if dist.get_rank() == 0:
            while not ray.get(self.lock.acquire.remote()):
                time.sleep(0.1)
            self._broadcast()
            ray.get(self.lock.release.remote())
        dist.barrier()
        if dist.get_rank() == 0:
            ray.get([engine.continue_generation.remote() for engine in self.rollout_engines])
        dist.barrier()

    def _broadcast(self):
        named = [
            (hf_name, part.contiguous()) for name, param in named_params_and_buffers(self.args, self.model)
            for hf_name, part in convert_to_hf(self.args, self.model_name, name, param.data)
        ]
        names, tensors = zip(*named, strict=True)
        if switched("kill-engine-holding-lock"):
            _kill_last_engine()
            self.group.barrier().wait()  # nobody comes: as in a broadcast over NCCL, which nothing interrupts
        sent = [
            engine.update_weights_from_distributed.remote(
                names=names, dtypes=[each.dtype for each in tensors], shapes=[list(each.shape) for each in tensors],
                group_name="slime", weight_version=str(self.weight_version),
            )
            for engine in self.rollout_engines
        ]
        for tensor in tensors:
            self.group.broadcast([tensor], dist.BroadcastOptions()).wait()
        ray.get(sent)


def _kill_last_engine():
    """Its server is stopped, so that it keeps its end of the connection open."""
    rows = [json.loads(line) for line in (DIRECTORY / "started.jsonl").read_text().splitlines()]
    engine = [row for row in rows if row["kind"] == "engine"][-1]
    os.kill(engine["server_pid"], signal.SIGSTOP)
    os.kill(engine["pid"], signal.SIGKILL)
