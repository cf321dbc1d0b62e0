"""GRPO in plain torch over any `transformers` causal language model, on a CPU or on one GPU."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from actors.trainers.forward import pack_logprobs
from actors.trainers.policy import Device, Policy, load_reference
from actors.weight_slots import DeviceWeightSlots, WeightSlots
from actors.weight_sync import SentWeights
from rlhaiku.config import AlgorithmConfig, TrainerConfig
from rlhaiku.losses import LossSettings, policy_loss
from rlhaiku.packing import Pack, pack_groups
from rlhaiku.types import TrainBatch, TrainGroup, TrainStats

STATE_FILE = "trainer.pt"


@dataclass(frozen=True, slots=True)
class TrainerSpec:
    """Everything a trainer needs to start."""

    model_path: str
    """A Hugging Face directory or hub id."""
    weights_file: Path
    """Where engines find the weights: shared memory, or the handle of a buffer on the GPU."""
    num_slots: int
    num_steps: int
    """Train steps of the whole run, for the learning-rate schedule."""
    trainer: TrainerConfig
    algorithm: AlgorithmConfig
    device: Device = "cpu"
    compiled: bool = False
    """On a GPU: compile the layers; about a minute at the first step."""


class TorchTrainer:
    """Holds the policy and its optimizer; there is no hidden state beside them."""

    def __init__(self, spec: TrainerSpec) -> None:
        torch.set_num_threads(spec.trainer.threads)
        # On a GPU the fast kernels of attention's backward pass have no deterministic twin.
        torch.use_deterministic_algorithms(spec.device == "cpu")
        self._spec = spec
        self._policy = Policy(
            spec.model_path, spec.device, recompute=spec.trainer.recompute, compiled=spec.compiled
        )
        self._model = self._policy.model
        self._tokenizer = AutoTokenizer.from_pretrained(spec.model_path)
        has_reference = spec.algorithm.kl_coef > 0
        self._reference = load_reference(spec.model_path, spec.device) if has_reference else None
        make_slots = WeightSlots if spec.device == "cpu" else DeviceWeightSlots.create
        self._slots = make_slots(spec.weights_file, self._model, spec.num_slots)
        self._optimizer = _make_optimizer(self._policy.weights.values(), spec.trainer)

    def train_step(self, batch: TrainBatch) -> TrainStats:
        """`optimizer_steps` AdamW steps, each over an equal part of the batch's groups."""
        lr = learning_rate(batch.step, self._spec.num_steps, self._spec.trainer)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        totals = _Totals()
        parts = np.array_split(np.arange(len(batch.groups)), self._spec.trainer.optimizer_steps)
        for part in parts:
            if len(part):
                self._optimizer_step([batch.groups[i] for i in part], batch.temperature, totals)
        return totals.stats(batch, lr)

    def send_weights(self, weight_version: int) -> SentWeights:
        """Publishes the current weights under a version."""
        checksum = self._slots.write(weight_version, self._model.named_parameters())
        return SentWeights(weight_version, checksum, self._slots.num_bytes)

    def save(self, directory: Path) -> None:
        """Writes `trainer.pt` (weights in full precision and optimizer) and a Hugging Face directory `hf/`."""
        state = {"weights": dict(self._policy.weights), "optimizer": self._optimizer.state_dict()}
        torch.save(state, directory / STATE_FILE)
        self._model.save_pretrained(directory / "hf")
        self._tokenizer.save_pretrained(directory / "hf")

    def load(self, directory: Path) -> None:
        """Restores what `save` wrote."""
        state = torch.load(directory / STATE_FILE, weights_only=True, map_location=self._spec.device)
        self._policy.load(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])

    def _optimizer_step(self, groups: Sequence[TrainGroup], temperature: float, totals: "_Totals") -> None:
        algorithm, trainer = self._spec.algorithm, self._spec.trainer
        settings = LossSettings(
            clip_low=algorithm.clip_low,
            clip_high=algorithm.clip_high,
            kl_coef=algorithm.kl_coef,
            max_ratio=algorithm.max_importance_ratio,
            aggregation=algorithm.loss_aggregation,
            num_tokens=sum(len(sample.token_ids) for group in groups for sample in group.samples),
            num_sequences=sum(len(group.samples) for group in groups),
        )
        self._optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(5, dtype=torch.float64, device=self._spec.device)  # read once: a GPU must not wait for us
        for pack in pack_groups(groups, trainer.micro_batch_tokens, trainer.shared_prompt):
            rollout_logprobs, advantages, lengths = (
                torch.from_numpy(each).to(sums.device, non_blocking=True)
                for each in (pack.rollout_logprobs, pack.advantages, pack.sequence_lengths)
            )
            trainer_logprobs = pack_logprobs(self._model, pack, temperature)
            reference_logprobs = self._reference_logprobs(pack, temperature)
            output = policy_loss(
                trainer_logprobs, rollout_logprobs, advantages, lengths, settings, reference_logprobs
            )
            output.loss.backward()  # type: ignore[no-untyped-call]
            counted = [output.loss.detach(), output.clipped, output.gap, output.kl, output.truncated]
            sums += torch.stack(counted).double()
            totals.forward_tokens += pack.num_tokens
        norm = torch.nn.utils.clip_grad_norm_(self._policy.weights.values(), trainer.max_grad_norm)
        self._optimizer.step()
        self._policy.refresh()
        totals.add(sums.tolist(), norm.item())

    def _reference_logprobs(self, pack: Pack, temperature: float) -> Tensor | None:
        if self._reference is None:
            return None
        with torch.no_grad():
            return pack_logprobs(self._reference, pack, temperature)


def learning_rate(step: int, num_steps: int, config: TrainerConfig) -> float:
    """Linear warm-up, then constant, or linear down to a tenth at the last step."""
    if step < config.lr_warmup_steps:
        return config.lr * (step + 1) / (config.lr_warmup_steps + 1)
    if config.lr_schedule == "constant":
        return config.lr
    after_warmup = (step - config.lr_warmup_steps) / max(1, num_steps - 1 - config.lr_warmup_steps)
    return config.lr * (1 - 0.9 * after_warmup)


class _Totals:
    """Sums over the micro-batches of one train step."""

    def __init__(self) -> None:
        self.loss = self.clipped = self.gap = self.kl = self.truncated = 0.0
        self.forward_tokens = 0
        self.grad_norms: list[float] = []

    def add(self, sums: Sequence[float], grad_norm: float) -> None:
        """One optimizer step's, in the order of `LossOutput`."""
        loss, clipped, gap, kl, truncated = sums
        self.loss = loss  # of the last one
        self.clipped += clipped
        self.gap += gap
        self.kl += kl
        self.truncated += truncated
        self.grad_norms.append(grad_norm)

    def stats(self, batch: TrainBatch, lr: float) -> TrainStats:
        num_tokens = batch.num_loss_tokens
        return TrainStats(
            step=batch.step,
            loss=self.loss,
            grad_norm=float(np.mean(self.grad_norms)),
            lr=lr,
            clip_fraction=self.clipped / num_tokens,
            logprob_gap=self.gap / num_tokens,
            kl=self.kl / num_tokens,
            num_loss_tokens=num_tokens,
            num_forward_tokens=self.forward_tokens,
            truncated_fraction=self.truncated / num_tokens,
        )


def _make_optimizer(weights: Iterable[nn.Parameter], config: TrainerConfig) -> torch.optim.AdamW:
    """AdamW with decay on matrices only: norms and biases have no business near zero."""
    parameters = list(weights)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_eps, fused=True
    )
