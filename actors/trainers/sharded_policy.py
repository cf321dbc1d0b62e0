"""The policy over several ranks by FSDP2: each holds an equal part of the fp32 weights and of the optimizer's state.

A layer's weights are gathered for its forward pass, in bf16 on GPUs, and stay until its backward pass is done; its
gradients are added up over the ranks in fp32, each rank keeping its part. All ranks forward equally often, since both
are collective; each forwards groups of its own.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils._pytree import tree_map

from actors.gpu_model import fuse_layers
from actors.trainers.forward import pack_logprobs
from actors.trainers.layer_graphs import COLUMNS
from actors.trainers.policy import Device, Policy, layers_of, load_policy, prepare_layers
from rlhaiku.errors import ActorDied
from rlhaiku.packing import Pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BUCKET_ELEMENTS = 2**28
"""Of all ranks together, in one exchange of weights on their way to engines."""
BY_ROWS = [Shard(0)]
"""How FSDP2 cuts a tensor: by rows, as evenly as they go."""


class ShardedPolicy(Policy):
    """A rank's part. Methods are collective: all ranks call them, in the same order."""

    def __init__(self, path: str, device: Device, *, recompute: bool = False, compiled: bool = False) -> None:
        """After `join`."""
        self.rank, self.num_ranks, self._device = dist.get_rank(), dist.get_world_size(), device
        self._mesh = init_device_mesh(device, (self.num_ranks,))
        self.model = load_policy(path)
        self._dtype = torch.float32
        precision = MixedPrecisionPolicy()
        if device == "cuda":
            self.columns, self._dtype = COLUMNS, torch.bfloat16
            precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            fuse_layers(self.model)
        prepare_layers(self.model, recompute=recompute, compiled=compiled)
        self._scorer = _Scorer(self.model)
        for part in (*layers_of(self.model), self._scorer):
            fully_shard(part, mesh=self._mesh, mp_policy=precision, reshard_after_forward=False)
        self.weights = dict(self.model.named_parameters())

    def logprobs(self, pack: Pack, temperature: float) -> Tensor:
        """[N] log-probabilities of a pack's loss tokens; the backward pass averages gradients over the ranks."""
        logprobs: Tensor = self._scorer(pack, temperature)
        return logprobs

    def clip_gradients(self, max_norm: float) -> Tensor:
        """[] their global norm before; they are scaled down to `max_norm` where it is more."""
        norm = super().clip_gradients(max_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def refresh(self) -> None:
        """Nothing: the next forward pass gathers the weights as they are."""

    @torch.no_grad()
    def outgoing(self) -> Iterable[tuple[str, Tensor]]:
        """Every parameter, whole, as engines take it; on the first rank, the others only take part."""
        return [named for named in self._gathered() if self.rank == 0]

    def _gathered(self) -> Iterator[tuple[str, Tensor]]:
        """Each parameter from all ranks' rows, many in one exchange, since each costs more than its bytes."""
        for bucket in _buckets(self.weights, self.num_ranks):
            own = torch.cat([self._part(weight) for weight in bucket.values()])
            every = own.new_empty(self.num_ranks * len(own))
            dist.all_gather_into_tensor(every, own)
            sizes = [_part_size(weight, self.num_ranks) for weight in bucket.values()]
            parts = torch.split(every.view(self.num_ranks, -1), sizes, dim=1)
            for (name, weight), part in zip(bucket.items(), parts, strict=True):
                yield name, part.reshape(-1, *weight.shape[1:])[: weight.shape[0]]

    def _part(self, weight: Tensor) -> Tensor:
        """This rank's rows, flat, as engines take them; filled up where the rows do not go evenly."""
        assert isinstance(weight, DTensor)
        rows = weight.to_local().flatten().to(self._dtype)
        return nn.functional.pad(rows, (0, _part_size(weight, self.num_ranks) - len(rows)))

    @torch.no_grad()
    def whole(self, state: Any) -> Any:  # noqa: ANN401  (dicts and lists of tensors)
        """A state as one rank alone would have it, in the CPU's memory of rank 0; elsewhere without tensors."""

        def gather(each: Any) -> Any:  # noqa: ANN401
            if not isinstance(each, DTensor):
                return each
            tensor = each.full_tensor()
            return tensor.cpu() if self.rank == 0 else None

        return tree_map(gather, state)

    @torch.no_grad()
    def share(self, state: Any) -> Any:  # noqa: ANN401
        """What this rank holds of a whole state, however many ranks saved it."""

        def cut(each: Any) -> Any:  # noqa: ANN401
            if not isinstance(each, Tensor) or not each.ndim:
                return each
            # Every rank has read the file, so none has to send. A clone, as older torch gives a view of the whole.
            return distribute_tensor(each.detach().to(self._device), self._mesh, BY_ROWS, src_data_rank=None).clone()

        return tree_map(cut, state)

    def export(self, directory: Path, weights: Mapping[str, Tensor]) -> None:
        """Writes a Hugging Face directory, on rank 0 alone; `weights`: of `whole`."""
        with torch.device("meta"):
            skeleton: PreTrainedModel = type(self.model)._from_config(self.model.config, dtype=self._dtype)
        skeleton.generation_config = self.model.generation_config
        skeleton.save_pretrained(directory, state_dict={name: each.to(self._dtype) for name, each in weights.items()})

    def together(self) -> AbstractContextManager[None]:
        """Around what needs the other ranks; raises ActorDied if one is gone."""
        return _needing_others(self.rank)

    def add_up(self, sums: Tensor) -> Tensor:
        """Sums over all ranks."""
        dist.all_reduce(sums)
        return sums

    def most(self, count: int) -> int:
        """The largest count of any rank."""
        counts = torch.tensor(count, device=self._device)
        dist.all_reduce(counts, dist.ReduceOp.MAX)
        return int(counts)


class _Scorer(nn.Module):
    """The outermost module FSDP sees: embedding and head are gathered while its forward pass runs."""

    def __init__(self, model: "PreTrainedModel") -> None:
        super().__init__()
        self.model = model

    def forward(self, pack: Pack, temperature: float) -> Tensor:
        return pack_logprobs(self.model, pack, temperature).clone()  # FSDP's hook hangs on it, and it is a view


def join(device: Device, meeting: Path, rank: int, num_ranks: int, timeout_s: float) -> None:
    """Meets the other ranks, which are on this machine, through a file that is not there yet; returns when all are in.

    `timeout_s`: longest wait for one of them, here and in every collective.
    """
    with _needing_others(rank):
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            init_method=f"file://{meeting.absolute()}",
            rank=rank,
            world_size=num_ranks,
            timeout=timedelta(seconds=timeout_s),
        )


@contextmanager
def _needing_others(rank: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        said = str(error).partition("\n")[0]
        # NCCL's errors have a class; gloo's name its source, or the deadline.
        if not isinstance(error, dist.DistError) and not re.search("gloo|[Tt]imed? ?out", said):
            raise
        raise ActorDied(f"trainer rank {rank} needs the others: {said}") from None


def _part_size(weight: Tensor, ranks: int) -> int:
    """Elements of the largest rank's rows."""
    return -(-weight.shape[0] // ranks) * math.prod(weight.shape[1:])


def _buckets(weights: Mapping[str, Tensor], ranks: int) -> Iterator[Mapping[str, Tensor]]:
    """Weights in their order, as many together as one exchange has room for, and at least one."""
    bucket: dict[str, Tensor] = {}
    elements = 0
    for name, weight in weights.items():
        if bucket and elements + _part_size(weight, ranks) > BUCKET_ELEMENTS // ranks:
            yield bucket
            bucket, elements = {}, 0
        bucket[name] = weight
        elements += _part_size(weight, ranks)
    yield bucket
