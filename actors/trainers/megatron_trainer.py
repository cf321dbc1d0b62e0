"""One rank of the Megatron trainer: slime's MegatronTrainRayActor, with what our side of the contract needs added.

slime writes what a step brought only to its log, so that is read there.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from actors.engines.sglang_server import engine_tensors, tensor_hash
from actors.slime_sync import SentTensors
from actors.weight_slots import DeviceWeightSlots, hashes
from rlhaiku.errors import RunFailed

MEGATRON_DIRECTORY, HF_DIRECTORY = "megatron", "hf"
LOGGED = {
    "train/grad_norm": "grad_norm",
    "train/pg_clipfrac": "clip_fraction",
    "train/train_rollout_logprob_abs_diff": "logprob_gap",
    "train/kl_loss": "kl",
}
"""slime's name -> field of TrainStats; means over the optimizer steps of a train step."""
OPTIONAL = ("train/kl_loss",)
"""Logged only with a reference model."""


class Training:
    """What this project adds to slime's trainer. Collective methods must be called on all ranks at once."""

    def start(self, args: Any, registry: Any, has_reference: bool) -> None:  # noqa: ANN401
        """Loads the model onto the GPU, joins the other ranks, and tells the registry how they are laid out."""
        _accept_numpy_2()
        self._rows: list[Mapping[str, Any]] = _listen_to_log()
        self._slot: DeviceWeightSlots | None = None
        slime: Any = self
        slime.init(args, "actor", with_ref=has_reference)
        slime.set_rollout_manager(registry)

    def train_step(self, step: int, boxes: Sequence[Any]) -> dict[str, float]:
        """One train step, collective; fields of TrainStats on the rank that logs, nothing on the others."""
        slime: Any = self
        lr = float(slime.optimizer.param_groups[0]["lr"])
        self._rows.clear()
        slime.train(step, boxes)
        rows = [row for row in self._rows if "train/loss" in row]
        if not rows:
            return {}
        means = {field: float(np.mean([_number(row, name) for row in rows])) for name, field in LOGGED.items()}
        return means | {"loss": float(rows[-1]["train/loss"]), "lr": lr}

    def push_weights(self, weight_version: int) -> None:
        """Sends the current weights to every engine under this version, collective."""
        slime: Any = self
        slime.weight_updater.weight_version = weight_version - 1  # slime counts up before it sends
        slime.update_weights()

    def fill_slot(self, file: Path) -> SentTensors:
        """Copies the weights, as engines hold them, into memory that an engine on this card has open, collective.

        The first call takes that memory and leaves in `file` what the engine needs to open it. Checksums are those of
        `weight_slots.hashes`.
        """
        if self._slot is None:
            shapes = {name: tensor.shape for name, tensor in self._engine_tensors()}
            self._slot = DeviceWeightSlots.create(file, shapes, 1)
        views = self._slot.views(0)
        with torch.no_grad():
            for name, tensor in self._engine_tensors():
                views[name].copy_(tensor)
        return SentTensors(hashes(views), self._slot.num_bytes)  # waits for the copies too

    def sent_tensors(self) -> SentTensors | None:
        """SGLang's checksums of the current weights as engines hold them, collective; None but on the first rank."""
        found, num_bytes = {}, 0
        for name, tensor in self._engine_tensors():
            found[name] = tensor_hash(tensor)
            num_bytes += tensor.nbytes
        slime: Any = self
        return SentTensors(found, num_bytes) if slime.args.rank == 0 else None

    def save(self, directory: Path, step: int) -> None:
        """Writes `megatron/`, the whole training state, and `hf/` into an existing directory, collective."""
        slime: Any = self
        slime.args.save = str(directory / MEGATRON_DIRECTORY)
        slime.args.save_hf = str(directory / HF_DIRECTORY).replace("{", "{{").replace("}", "}}")
        slime.save_model(step, force_sync=True)

    def load(self, directory: Path) -> None:
        """Restores what `save` wrote, collective."""
        from slime.backends.megatron_utils.checkpoint import load_checkpoint

        slime: Any = self
        args = slime.args
        args.load, args.ckpt_step = str(directory / MEGATRON_DIRECTORY), None
        args.finetune = args.no_load_optim = False
        args.no_load_rng = True  # nothing in a step is drawn at random
        _begin_adam(slime.optimizer)
        load_checkpoint(
            slime.model, slime.optimizer, slime.opt_param_scheduler,
            checkpointing_context={}, skip_load_to_model_and_opt=False,
        )  # fmt: skip
        _count_apart(slime.optimizer)
        slime.weights_backuper.backup("actor")

    def _engine_tensors(self) -> Iterator[tuple[str, Any]]:
        from slime.backends.megatron_utils.megatron_to_hf import convert_to_hf
        from slime.backends.megatron_utils.update_weight.common import all_gather_param, named_params_and_buffers

        slime: Any = self
        model_name = slime.weight_updater.model_name
        for name, parameter in named_params_and_buffers(slime.args, slime.model):
            whole = all_gather_param(name, parameter)
            yield from engine_tensors(convert_to_hf(slime.args, model_name, name, whole.detach()))


def trainer_class() -> type:
    """slime's trainer with ours in front; imports Megatron."""
    from slime.backends.megatron_utils.actor import MegatronTrainRayActor

    return type("MegatronTrainer", (Training, MegatronTrainRayActor), {})


def _number(row: Mapping[str, Any], name: str) -> float:
    """What slime logged under a name; raises RunFailed for one that is gone, which must not look like a zero."""
    if name not in row and name not in OPTIONAL:
        raise RunFailed(f"slime must log {name} with each optimizer step; it logged {', '.join(sorted(row))}")
    return float(row.get(name, 0.0))


def _accept_numpy_2() -> None:
    """slime asserts numpy 1 for Megatron's sake, which runs with 2 too; its module sees this instead."""
    from slime.backends.megatron_utils import initialize

    initialize.np = SimpleNamespace(__version__="1.26.4", random=np.random)


def _begin_adam(optimizer: Any) -> None:  # noqa: ANN401  (Megatron's)
    """Gives torch's Adam the state of before its first step, where it has none yet.

    Megatron describes an optimizer before it loads one, and torch's own, which it takes without Transformer Engine, it
    cannot describe before a step (megatron/core/optimizer/distrib_optimizer.py, 0.19.2: `assert len(steps) == 1`).
    Before 0.19, slime's pinned commit included, it cannot even save one: line 1670 there takes `step` for a tensor as
    long as the weights, so without Transformer Engine checkpoints need megatron-core 0.19.
    """
    for inner in _torch_adams(optimizer):
        for weight in (each for group in inner.param_groups for each in group["params"]):
            if not inner.state[weight]:
                moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
                inner.state[weight] = {"step": torch.tensor(0.0), **moments}


def _count_apart(optimizer: Any) -> None:  # noqa: ANN401
    """Gives each weight a step counter of its own again: Megatron loads one for all, which then counts every weight."""
    for inner in _torch_adams(optimizer):
        for group in inner.param_groups:
            for weight in group["params"]:
                inner.state[weight]["step"] = torch.tensor(float(group["step"]))


def _torch_adams(optimizer: Any) -> Iterator[torch.optim.Optimizer]:  # noqa: ANN401
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if isinstance(getattr(part, "optimizer", None), torch.optim.Adam | torch.optim.AdamW):
            yield part.optimizer


def _listen_to_log() -> list[Mapping[str, Any]]:
    """A list that from now on gets every row that slime logs in this process."""
    from slime.observability import logging_utils

    rows: list[Mapping[str, Any]] = []
    write = logging_utils.log

    def log(args: Any, metrics: Mapping[str, Any], step_key: str) -> None:  # noqa: ANN401
        rows.append(dict(metrics))
        write(args, metrics, step_key)

    logging_utils.log = log
    return rows
