"""The trainer of a laptop: GRPO in plain torch over any `transformers` causal language model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from actors.weight_slots import WeightSlots
from actors.weight_sync import SentWeights
from rlhaiku.config import AlgorithmConfig, TrainerConfig
from rlhaiku.losses import LossSettings, policy_loss
from rlhaiku.packing import Pack, attention_allowed, pack_groups
from rlhaiku.types import TrainBatch, TrainGroup, TrainStats

STATE_FILE = "trainer.pt"


@dataclass(frozen=True, slots=True)
class TrainerSpec:
    """Everything a trainer needs to start."""

    model_path: str
    """A Hugging Face directory or hub id."""
    weights_file: Path
    """Shared memory that `WeightSlots` maps."""
    num_slots: int
    num_steps: int
    """Train steps of the whole run, for the learning-rate schedule."""
    trainer: TrainerConfig
    algorithm: AlgorithmConfig


class TorchTrainer:
    """Holds the policy and its optimizer; there is no hidden state beside them."""

    def __init__(self, spec: TrainerSpec) -> None:
        torch.set_num_threads(spec.trainer.threads)
        torch.use_deterministic_algorithms(True)
        self._spec = spec
        self._model = _load_model(spec.model_path)
        self._tokenizer = AutoTokenizer.from_pretrained(spec.model_path)
        self._reference = _load_model(spec.model_path) if spec.algorithm.kl_coef > 0 else None
        self._slots = WeightSlots(spec.weights_file, self._model, spec.num_slots)
        self._optimizer = _make_optimizer(self._model, spec.trainer)

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
        state = {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}
        torch.save(state, directory / STATE_FILE)
        self._model.save_pretrained(directory / "hf")
        self._tokenizer.save_pretrained(directory / "hf")

    def load(self, directory: Path) -> None:
        """Restores what `save` wrote."""
        state = torch.load(directory / STATE_FILE, weights_only=True)
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])

    def _optimizer_step(self, groups: Sequence[TrainGroup], temperature: float, totals: "_Totals") -> None:
        algorithm, trainer = self._spec.algorithm, self._spec.trainer
        settings = LossSettings(
            clip_low=algorithm.clip_low,
            clip_high=algorithm.clip_high,
            kl_coef=algorithm.kl_coef,
            aggregation=algorithm.loss_aggregation,
            num_tokens=sum(len(sample.token_ids) for group in groups for sample in group.samples),
            num_sequences=sum(len(group.samples) for group in groups),
        )
        self._optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for pack in pack_groups(groups, trainer.micro_batch_tokens, trainer.shared_prompt):
            output = policy_loss(
                pack_logprobs(self._model, pack, temperature),
                torch.from_numpy(pack.rollout_logprobs),
                torch.from_numpy(pack.advantages),
                torch.from_numpy(pack.sequence_lengths),
                settings,
                self._reference_logprobs(pack, temperature),
            )
            output.loss.backward()  # type: ignore[no-untyped-call]
            loss += output.loss.item()
            totals.clipped += output.clipped.item()
            totals.gap += output.gap.item()
            totals.kl += output.kl.item()
            totals.forward_tokens += pack.num_tokens
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), trainer.max_grad_norm)
        self._optimizer.step()
        totals.loss = loss
        totals.grad_norms.append(norm.item())

    def _reference_logprobs(self, pack: Pack, temperature: float) -> Tensor | None:
        if self._reference is None:
            return None
        with torch.no_grad():
            return pack_logprobs(self._reference, pack, temperature)


def pack_logprobs(model: PreTrainedModel, pack: Pack, temperature: float) -> Tensor:
    """[N] log-probabilities of a pack's loss tokens; logits are made only at the positions that need them."""
    hidden = model.base_model(
        input_ids=torch.from_numpy(pack.token_ids),
        attention_mask=torch.from_numpy(attention_allowed(pack.segment_ids))[:, None],
        position_ids=torch.from_numpy(pack.position_ids),
        use_cache=False,
    ).last_hidden_state
    rows, columns = torch.from_numpy(pack.target_rows), torch.from_numpy(pack.predictor_columns)
    logits = model.get_output_embeddings()(hidden[rows, columns]).float() / temperature
    chosen: Tensor = logits.log_softmax(-1).gather(-1, torch.from_numpy(pack.targets)[:, None])[:, 0]
    return chosen


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
        self.loss = self.clipped = self.gap = self.kl = 0.0
        self.forward_tokens = 0
        self.grad_norms: list[float] = []

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
        )


def _load_model(path: str) -> PreTrainedModel:
    """In fp32 (bf16 is slower on a CPU), without dropout: a policy's logprobs must not depend on chance."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def _make_optimizer(model: PreTrainedModel, config: TrainerConfig) -> torch.optim.AdamW:
    """AdamW with decay on matrices only: norms and biases have no business near zero."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_eps, fused=True
    )
