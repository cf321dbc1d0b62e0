import os
import random

import ray
import torch.distributed as dist
from slime.ray.ray_actor import RayActor


class TrainRayActor(RayActor):
    def __init__(self, world_size, rank, master_addr, master_port):
        self._world_size, self._rank = world_size, rank
        if master_addr:
            self.master_addr, self.master_port = master_addr, master_port
        else:
            self.master_addr, self.master_port = self._get_current_node_ip_and_free_port(random.randint(20000, 21000))
        os.environ["LOCAL_RANK"] = str(ray.get_gpu_ids()[0])

    def init(self, args, role, with_ref=False, with_opd_teacher=False):
        self.args, self.role, self.with_ref = args, role, with_ref
        address = f"tcp://{self.master_addr}:{self.master_port}"
        dist.init_process_group("gloo", init_method=address, rank=self._rank, world_size=self._world_size)
        args.rank, args.world_size = dist.get_rank(), dist.get_world_size()

    def set_rollout_manager(self, rollout_manager):
        self.rollout_manager = rollout_manager
        if self.args.rank == 0:
            ray.get(self.rollout_manager.set_train_parallel_config.remote(self.train_parallel_config))
