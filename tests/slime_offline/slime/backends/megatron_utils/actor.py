import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import ray
import torch
import torch.distributed as dist
from slime.backends.megatron_utils.initialize import init
from slime.backends.megatron_utils.update_weight.update_weight_from_distributed import UpdateWeightFromDistributed
from slime.backends.megatron_utils.update_weight.update_weight_from_tensor import UpdateWeightFromTensor
from slime.card import pretend
from slime.observability import logging_utils
from slime.ray.train_actor import TrainRayActor
from slime.record import DIRECTORY, started, switched

from actors.trainers import megatron_trainer

_ARGS = []


def get_args():
    return _ARGS[0]


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear_qkv = torch.nn.Linear(2, 6, bias=False)
        self.final_layernorm = torch.nn.Linear(3, 1, bias=False)
        for param in self.parameters():
            torch.nn.init.ones_(param)


class MegatronTrainRayActor(TrainRayActor):
    def init(self, args, role, with_ref=False, with_opd_teacher=False):
        super().init(args, role, with_ref)
        _ARGS[:] = [args]
        init(args)
        pretend(megatron_trainer)
        started("rank", args.rank, world_size=args.world_size, with_ref=with_ref)
        self.model, self.opt_param_scheduler = [Model()], None
        self.optimizer = SimpleNamespace(param_groups=[{"lr": args.lr}])
        self.train_parallel_config = {"dp_size": args.world_size, "cp_size": 1, "vpp_size": 1,
                                      "microbatch_group_size_per_vp_stage": 1}
        self.weights_backuper = SimpleNamespace(backup=lambda tag: None)
        updater = UpdateWeightFromTensor if args.colocate else UpdateWeightFromDistributed
        self.weight_updater = updater(args, self.model, None, model_name="qwen3config", quantization_config=None)
        return args.start_rollout_id

    def train(self, rollout_id, rollout_data_ref, external_data=None):
        assert len(rollout_data_ref) == self.args.world_size
        data = ray.get(rollout_data_ref[self.args.rank].inner)
        seen = torch.tensor([len(data["tokens"]), sum(data["rewards"])])
        dist.all_reduce(seen)
        assert int(seen[0]) == len(data["total_lengths"])
        with torch.no_grad():
            for param in self.model[0].parameters():
                param += 1
        if self.args.rank == 0:
            row = {"train/loss": 0.5, "train/grad_norm": 2.0, "train/pg_clipfrac": 0.25, "train/step": rollout_id,
                   "train/train_rollout_logprob_abs_diff": 0.01}
            logging_utils.log(self.args, row, step_key="train/step")
            logging_utils.log(self.args, {"rollout/rewards": 0.0, "rollout/step": 0}, step_key="rollout/step")

    def update_weights(self):
        (
            rollout_engines,
            rollout_engine_lock,
            num_new_engines,
            engine_gpu_counts,
            engine_gpu_offsets,
            engine_parallel_configs,
        ) = ray.get(self.rollout_manager.get_updatable_engines_and_lock.remote())
        if num_new_engines > 0:
            self.weight_updater.connect_rollout_engines(
                rollout_engines, rollout_engine_lock, engine_gpu_counts=engine_gpu_counts,
                engine_gpu_offsets=engine_gpu_offsets, engine_parallel_configs=engine_parallel_configs,
            )
            dist.barrier()
            if dist.get_rank() == 0:
                ray.get(self.rollout_manager.clear_updatable_num_new_engines.remote())
        if dist.get_rank() == 0 and switched("kill-engine-in-update"):
            rows = [json.loads(line) for line in (DIRECTORY / "started.jsonl").read_text().splitlines()]
            os.kill([row["pid"] for row in rows if row["kind"] == "engine"][-1], signal.SIGKILL)
        self.weight_updater.update_weights()

    def save_model(self, rollout_id, force_sync=False):
        if self.args.rank == 0:
            directory = Path(self.args.save) / f"iter_{rollout_id:07d}"
            directory.mkdir(parents=True)
            torch.save(self.model[0].state_dict(), directory / "state.pt")
            (Path(self.args.save) / "latest_checkpointed_iteration.txt").write_text(str(rollout_id))
            shutil.copytree(self.args.hf_checkpoint, self.args.save_hf.format(rollout_id=rollout_id))
        dist.barrier()
