"""GRPO in plain torch over any `transformers` causal language model, on a CPU, one GPU, or several by FSDP2."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from actors.trainers.forward import pack_logprobs
from actors.trainers.policy import Device, Policy, load_reference
from actors.weight_slots import DeviceWeightSlots, WeightSlots, parameter_shapes
from actors.weight_sync import SentWeights
from rlhaiku.config import AlgorithmConfig, TrainerConfig
from rlhaiku.losses import LossSettings, policy_loss
from rlhaiku.packing import Pack, group_tokens, pack_groups, split_groups
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
    """Versions kept; with 1, on a GPU, engines read the model itself, and must be idle while it changes."""
    num_steps: int
    """Train steps of the whole run, for the learning-rate schedule."""
    trainer: TrainerConfig
    algorithm: AlgorithmConfig
    device: Device = "cpu"
    compiled: bool = False
    """On a GPU: compile the layers; about a minute at the first step."""
    rank: int = 0
    num_ranks: int = 1
    """Trainers that share one model, each a process with a card of its own, on one machine."""
    timeout_s: float = 600.0
    """Longest wait of a rank for another."""


class TorchTrainer:
    """Holds the policy and its optimizer, or a rank's part of both; there is no hidden state beside them.

    Where there are several ranks, every method is called on all of them at once.
    """

    def __init__(self, spec: TrainerSpec) -> None:
        torch.set_num_threads(spec.trainer.threads)
        # On a GPU the fast kernels of attention's backward pass have no deterministic twin.
        torch.use_deterministic_algorithms(spec.device == "cpu")
        self._spec = spec
        make_policy: type[Policy] = Policy
        if spec.num_ranks > 1:
            from actors.trainers.sharded_policy import ShardedPolicy, join  # loads FSDP, which a lone rank need not

            make_policy = ShardedPolicy
            join(spec.device, spec.weights_file.with_suffix(".ranks"), spec.rank, spec.num_ranks, spec.timeout_s)
        self._policy = make_policy(
            spec.model_path, spec.device, recompute=spec.trainer.recompute, compiled=spec.compiled
        )
        self._model = self._policy.model
        self._tokenizer = AutoTokenizer.from_pretrained(spec.model_path)
        has_reference = spec.algorithm.kl_coef > 0
        self._reference = load_reference(spec.model_path, spec.device) if has_reference else None
        self._reference_layers = self._policy.prepared(self._reference) if self._reference else None
        self._slots = _make_slots(spec, self._model) if spec.rank == 0 else None
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
                with self._policy.together():
                    self._optimizer_step([batch.groups[i] for i in part], batch.temperature, totals)
        return totals.stats(batch, lr)

    def send_weights(self, weight_version: int) -> SentWeights | None:
        """Publishes the current weights under a version; rank 0 does, from everybody's parts."""
        with self._policy.together():
            outgoing = self._policy.outgoing()
        if self._slots is None:
            return None
        checksum = self._slots.write(weight_version, outgoing)
        return SentWeights(weight_version, checksum, self._slots.num_bytes)

    def save(self, directory: Path) -> None:
        """Writes `trainer.pt` (weights in full precision and optimizer) and a Hugging Face directory `hf/`.

        They are the same for any number of ranks.
        """
        state = {"weights": dict(self._policy.weights), "optimizer": self._optimizer.state_dict()}
        with self._policy.together():
            state = self._policy.whole(state)
        if self._spec.rank:
            return
        torch.save(state, directory / STATE_FILE)
        self._policy.export(directory / "hf", state["weights"])
        self._tokenizer.save_pretrained(directory / "hf")

    def load(self, directory: Path) -> None:
        """Restores what `save` wrote, with any number of ranks."""
        is_alone = self._spec.num_ranks == 1
        place = self._spec.device if is_alone else "cpu"  # a rank takes its part from the file
        state = torch.load(directory / STATE_FILE, weights_only=True, map_location=place, mmap=not is_alone)
        state = self._policy.share(state)
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
        self._optimizer.zero_grad(set_to_none=not self._policy.keeps_gradients)
        sums = torch.zeros(6, dtype=torch.float64, device=self._spec.device)  # read once: a GPU must not wait for us
        forward_tokens = 0
        for pack, weight in self._packs(groups):
            counted = self._learn(pack, weight, temperature, settings)
            if weight:
                sums[:5] += counted
                forward_tokens += pack.num_tokens
        sums[5] = forward_tokens
        sums = self._policy.add_up(sums)
        norm = self._policy.clip_gradients(trainer.max_grad_norm)
        self._optimizer.step()
        self._policy.refresh()
        totals.add(sums.tolist(), norm.item())

    def _learn(self, pack: Pack, weight: float, temperature: float, settings: LossSettings) -> Tensor:
        """Adds `weight` times a pack's gradients; returns its loss and what is counted, [5].

        Nothing of what autograd keeps of a pack may be left when the next one comes, which a graph may be made for.
        """
        rollout_logprobs, advantages, lengths = (
            torch.from_numpy(each).to(self._spec.device, non_blocking=True)
            for each in (pack.rollout_logprobs, pack.advantages, pack.sequence_lengths)
        )
        trainer_logprobs = self._policy.logprobs(pack, temperature)
        reference_logprobs = self._reference_logprobs(pack, temperature)
        output = policy_loss(trainer_logprobs, rollout_logprobs, advantages, lengths, settings, reference_logprobs)
        (output.loss * weight).backward()  # type: ignore[no-untyped-call]
        return torch.stack([output.loss.detach(), output.clipped, output.gap, output.kl, output.truncated]).double()

    def _packs(self, groups: Sequence[TrainGroup]) -> Iterable[tuple[Pack, float]]:
        """This rank's packs, and with what each one's loss is multiplied.

        All ranks have equally many, since a forward pass is collective: what some lack is filled up with packs that
        count nothing. The others count once for each rank: the loss is a sum over them, of which FSDP takes the mean.
        """
        trainer, policy = self._spec.trainer, self._policy
        pack = partial(pack_groups, max_tokens=trainer.micro_batch_tokens, columns=policy.columns)
        if policy.num_ranks == 1:
            return ((each, 1.0) for each in pack(groups, shared_prompt=trainer.shared_prompt))
        own = split_groups(groups, policy.num_ranks)[policy.rank]
        packs = list(pack(own, shared_prompt=trainer.shared_prompt))
        (filler, *_) = pack([min(groups, key=group_tokens)], shared_prompt=False)
        missing = policy.most(len(packs)) - len(packs)
        return [(each, float(policy.num_ranks)) for each in packs] + [(filler, 0.0)] * missing

    def _reference_logprobs(self, pack: Pack, temperature: float) -> Tensor | None:
        if self._reference is None:
            return None
        with torch.no_grad():
            return pack_logprobs(self._reference, pack, temperature, self._reference_layers)


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
        """One optimizer step's, in the order of `LossOutput`, and the tokens forwarded."""
        loss, clipped, gap, kl, truncated, forward_tokens = sums
        self.loss = loss  # of the last one
        self.clipped += clipped
        self.gap += gap
        self.kl += kl
        self.truncated += truncated
        self.forward_tokens += int(forward_tokens)
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


def _make_slots(spec: TrainerSpec, model: nn.Module) -> WeightSlots:
    if spec.device == "cpu":
        return WeightSlots(spec.weights_file, model, spec.num_slots)
    slots = DeviceWeightSlots.create(spec.weights_file, parameter_shapes(model), spec.num_slots)
    if spec.num_slots == 1 and spec.num_ranks == 1:
        slots.adopt(model)  # 2 bytes a parameter less on the card; a rank's model is gathered anew each time
    return slots


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
