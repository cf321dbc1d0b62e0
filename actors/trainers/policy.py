"""The model a torch trainer trains: fp32 on a CPU; on a GPU bf16, with fp32 masters that the optimizer steps."""

from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from actors.bf16 import to_bf16

Device = Literal["cpu", "cuda"]


class Policy:
    """A model and the fp32 weights behind it, by parameter name."""

    def __init__(self, path: str, device: Device, *, recompute: bool = False, compiled: bool = False) -> None:
        """`recompute`: keep no activations inside a layer; `compiled`: fuse each layer's small kernels (a minute once).
        """
        # In fp32 for a CPU, where bf16 is slower; without dropout: a policy's logprobs must not depend on chance.
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().to(device)
        self.weights: Mapping[str, nn.Parameter] = dict(self.model.named_parameters())
        if device == "cuda":
            self.weights = {name: nn.Parameter(own.detach().clone()) for name, own in self.weights.items()}
            to_bf16(self.model)
            for name, own in self.model.named_parameters():
                own.register_post_accumulate_grad_hook(partial(_hand_over, self.weights[name]))
        for layer in self.model.modules():
            if isinstance(layer, GradientCheckpointingLayer):  # whatever transformers considers worth it: a whole layer
                if compiled:
                    layer.forward = torch.compile(layer.forward, dynamic=True)
                if recompute:
                    layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)

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


def load_reference(path: str, device: Device) -> PreTrainedModel:
    """A model that is only forwarded."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().to(device)
    return to_bf16(model) if device == "cuda" else model


def _hand_over(master: nn.Parameter, own: Tensor) -> None:
    """Adds a micro-batch's bf16 gradient to the fp32 one, so that sums lose nothing."""
    assert own.grad is not None
    if master.grad is None:
        master.grad = own.grad.float()
    else:
        master.grad += own.grad
    own.grad = None
