"""A policy's layers on one GPU, prepared for the shapes of packs that come again.

What is fastest in the long run has to be made ready for every new shape: cuDNN's attention takes some 0.2 s to prepare,
and a CUDA graph of a small model 0.1 s. So a shape that is new has an attention that is ready at once, which small
models keep, and one that comes again cuDNN's. Where launching kernels takes longer than the kernels, as in models below
a billion parameters, one graph then launches all of a forward pass, and another all of its backward pass.
"""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from actors.trainers.forward import forward_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

READY_AT_ONCE = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Attention that has nothing to prepare."""
SMALL_MODEL = 3e8
"""Parameters below which attention takes a few milliseconds of a step, whoever computes it, and so does padding."""
COLUMNS, SMALL_MODELS_COLUMNS = 16, 64
"""Packs are multiples of that wide."""
GRAPHED_MODEL = 1e9
"""Parameters below which there are graphs: these keep gradients where they are, 4 bytes a parameter."""
LAUNCHES_PREVAIL = 5e12
"""Parameters x tokens below which launching takes longer than some 0.07 s of products on a Hopper card."""
GRAPH_AFTER = 2
"""Times that a shape is forwarded without a graph: so it has been forwarded with the attention that it is to keep."""
MOST_GRAPHS = 64
"""Each keeps its shape's hidden states and their gradient, however rarely the shape comes."""
MOMENTS_BYTES = 8
"""Of the optimizer's state for each parameter, which is not there before the first step's end."""


class PreparedLayers:
    """The layers as a function of a pack's tokens. A pack's backward pass comes before the next pack's forward pass."""

    def __init__(self, model: "PreTrainedModel", weights: Sequence[nn.Parameter] = ()) -> None:
        """`weights`: the parameters' fp32 ones, in their order; gradients are added to theirs, which stay in place.

        Without weights there are no graphs: a reference model has nothing but its attention from here.
        """
        self._model, self._weights = model, weights
        self._num_parameters = sum(own.numel() for own in model.parameters())
        self._is_small = self._num_parameters < SMALL_MODEL
        self.columns = SMALL_MODELS_COLUMNS if self._is_small else COLUMNS
        self.may_capture = bool(weights) and self._num_parameters < GRAPHED_MODEL
        """Whether there may be graphs."""
        self._seen: Counter[torch.Size] = Counter()
        self._graphs: dict[torch.Size, _Graphs] = {}
        self._anchor = torch.zeros((), device=model.device, requires_grad=True)  # or autograd would not ask for us

    def __call__(self, token_ids: Tensor, position_ids: Tensor, segment_ids: Tensor) -> Tensor:
        """[R, L, H] last hidden states; each argument is [R, L]."""
        inputs, shape = (token_ids, position_ids, segment_ids), token_ids.shape
        self._seen[shape] += 1
        with sdpa_kernel(READY_AT_ONCE) if self._is_small or self._seen[shape] == 1 else nullcontext():
            if self._seen[shape] > GRAPH_AFTER and shape not in self._graphs and self._is_worth_a_graph(shape):
                self._capture(inputs)
            if shape not in self._graphs:
                return forward_layers(self._model, *inputs)
        hidden: Tensor = _Replay.apply(self._anchor, self._graphs[shape], *inputs)  # type: ignore[no-untyped-call]
        return hidden

    def _is_worth_a_graph(self, shape: torch.Size) -> bool:
        if not self.may_capture or self._num_parameters * shape.numel() > LAUNCHES_PREVAIL:
            return False
        is_ready = all(weight.grad is not None for weight in self._weights)
        return is_ready and len(self._graphs) < MOST_GRAPHS and self._has_room()

    def _has_room(self) -> bool:
        """Whether what a pass needs is free twice: graphs keep what they work in, and share it as well as it fits."""
        allocated = torch.cuda.memory_allocated()
        needed = torch.cuda.max_memory_allocated() - allocated + MOMENTS_BYTES * self._num_parameters
        return bool(torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - allocated > 2 * needed)

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        pool = next((each.pool for each in self._graphs.values()), None)
        try:
            self._graphs[inputs[0].shape] = _Graphs(self._model, self._weights, inputs, pool)
        except RuntimeError as error:  # a model may do what no graph can, such as looking at a value
            self.may_capture = False
            reason = str(error).partition("\n")[0]
            logging.getLogger(__name__).warning("no CUDA graphs for %s: %s", type(self._model).__name__, reason)


class _Graphs:
    """A forward and a backward pass over one shape, and the places they read from and write to."""

    def __init__(
        self, model: "PreTrainedModel", weights: Sequence[nn.Parameter], inputs: tuple[Tensor, ...], pool: Any  # noqa: ANN401
    ) -> None:  # fmt: skip
        self.inputs = [torch.empty_like(each) for each in inputs]
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.stream(torch.cuda.current_stream()):  # a capture that fails would leave us on its own
            with torch.cuda.graph(self.forward, pool=pool), _refusing_looks():
                hidden = forward_layers(model, *self.inputs)
            self.pool, self.gradient = self.forward.pool(), torch.empty_like(hidden)
            with torch.cuda.graph(self.backward, pool=self.pool), _refusing_looks():
                _add_gradients(hidden, self.gradient, list(model.parameters()), weights)
        self.hidden = hidden.detach()


@contextmanager
def _refusing_looks() -> Iterator[None]:
    """What waits for the GPU, such as `item()`, gets a RuntimeError from torch: one from CUDA would spoil the capture,
    and with it torch's memory for the rest of the process.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # it warns of itself, as a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


def _add_gradients(
    hidden: Tensor, gradient: Tensor, parameters: Sequence[nn.Parameter], weights: Sequence[nn.Parameter]
) -> None:
    """The backward pass, into the weights' gradients where they are.

    Not by `backward()`: it would add them on the stream of an earlier pass, and hand them over once more.
    """
    found = torch.autograd.grad(hidden, parameters, gradient, allow_unused=True)
    for weight, each in zip(weights, found, strict=True):
        if each is not None:
            weight.grad += each  # type: ignore[operator]


class _Replay(torch.autograd.Function):
    """Replays a shape's forward pass now, and its backward pass when autograd gets there."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, graphs: _Graphs, *inputs: Tensor) -> Tensor:  # noqa: ANN401
        for place, given in zip(graphs.inputs, inputs, strict=True):
            place.copy_(given)
        graphs.forward.replay()
        ctx.graphs = graphs
        return graphs.hidden.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:  # noqa: ANN401
        graphs = ctx.graphs
        graphs.gradient.copy_(gradients[0])
        graphs.backward.replay()
        return (None,) * (2 + len(graphs.inputs))
