"""The model a torch trainer trains: fp32 on a CPU; on a GPU bf16, with fp32 masters that the optimizer steps."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM

from actors.gpu_model import to_bf16
from actors.trainers.forward import pack_logprobs
from actors.trainers.layer_graphs import COLUMNS, PreparedLayers
from rlhaiku.packing import Pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Device = Literal["cpu", "cuda"]


class Policy:
    """A model and the fp32 weights behind it, by parameter name.

    What takes part of it for several ranks, `ShardedPolicy`, overrides; alone there is nothing to gather or to add up.
    """

    rank, num_ranks = 0, 1
    keeps_gradients = False
    """Whether they are set to zero where they are instead of given up."""
    columns = 1
    """Packs are multiples of that wide: on a GPU every new shape costs time."""
    _layers: PreparedLayers | None = None

    def __init__(self, path: str, device: Device, *, recompute: bool = False, compiled: bool = False) -> None:
        """`recompute`: keep no activations inside a layer; `compiled`: fuse each layer's small kernels (a minute once).
        """
        self.model = load_policy(path).to(device)
        self.weights: Mapping[str, nn.Parameter] = dict(self.model.named_parameters())
        if device == "cuda":
            self.columns = COLUMNS
            self.weights = {name: nn.Parameter(own.detach().clone()) for name, own in self.weights.items()}
            to_bf16(self.model)
            for name, own in self.model.named_parameters():
                own.register_post_accumulate_grad_hook(partial(_hand_over, self.weights[name]))
            if not recompute and not compiled:
                self._layers = PreparedLayers(self.model, list(self.weights.values()))
                self.columns, self.keeps_gradients = self._layers.columns, self._layers.may_capture
        prepare_layers(self.model, recompute=recompute, compiled=compiled)

    def logprobs(self, pack: Pack, temperature: float) -> Tensor:
        """[N] log-probabilities of a pack's loss tokens; its backward pass comes before the next pack's forward pass.
        """
        return pack_logprobs(self.model, pack, temperature, self._layers)

    def prepared(self, reference: "PreTrainedModel") -> PreparedLayers | None:
        """The layers of a model that is only forwarded, with the attention of this one's."""
        return None if self._layers is None else PreparedLayers(reference)

    def clip_gradients(self, max_norm: float) -> Tensor:
        """[] their global norm before; they are scaled down to `max_norm` where it is more."""
        return torch.nn.utils.clip_grad_norm_(self.weights.values(), max_norm)

    @torch.no_grad()
    def refresh(self) -> None:
        """Makes the model follow its fp32 weights, after they changed."""
        own = list(self.model.parameters())
        if own[0].dtype != torch.float32:
            torch._foreach_copy_(own, list(self.weights.values()))

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Takes fp32 weights by name."""
        for name, weight in self.weights.items():
            weight.copy_(weights[name])
        self.refresh()

    def outgoing(self) -> Iterable[tuple[str, Tensor]]:
        """Every parameter as engines take it."""
        return ((name, own) for name, own in self.model.named_parameters())

    def whole(self, state: Any) -> Any:  # noqa: ANN401  (dicts and lists of tensors)
        """A state whose tensors are complete, to be saved by rank 0."""
        return state

    def share(self, state: Any) -> Any:  # noqa: ANN401
        """What this rank holds of a whole state."""
        return state

    def export(self, directory: Path, weights: Mapping[str, Tensor]) -> None:
        """Writes a Hugging Face directory; `weights`: of `whole`."""
        self.model.save_pretrained(directory)

    def together(self) -> AbstractContextManager[None]:
        """Around what needs the other ranks: their absence is then known as such."""
        return nullcontext()

    def add_up(self, sums: Tensor) -> Tensor:
        """Sums over all ranks."""
        return sums

    def most(self, count: int) -> int:
        """The largest count of any rank."""
        return count


def load_policy(path: str) -> "PreTrainedModel":
    """The model in fp32, for a CPU, where bf16 is slower; no dropout: a policy's logprobs must not depend on chance."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return model


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Whatever transformers considers worth recomputing: whole layers."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]


def prepare_layers(model: nn.Module, *, recompute: bool, compiled: bool) -> None:
    """Has layers compiled, and their activations made again in the backward pass."""
    for layer in layers_of(model):
        if compiled:
            layer.forward = torch.compile(layer.forward, dynamic=True)
        if recompute:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def load_reference(path: str, device: Device) -> "PreTrainedModel":
    """A model that is only forwarded."""
    model: PreTrainedModel = load_policy(path).to(device)
    return to_bf16(model) if device == "cuda" else model


def _hand_over(master: nn.Parameter, own: Tensor) -> None:
    """Adds a micro-batch's bf16 gradient to the fp32 one, so that sums lose nothing."""
    assert own.grad is not None
    if master.grad is None:
        master.grad = own.grad.float()
    else:
        master.grad += own.grad
    own.grad = None
