"""The rollout engine of a laptop: torch over any `transformers` causal language model, on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.engines.decoding import DecodedRow, TileDecoder
from actors.weight_slots import WeightSlots
from rlhaiku.errors import WeightMismatch
from rlhaiku.types import Completion, Group, GroupRequest


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Everything an engine needs to start, or to start again after it died."""

    model_path: str
    """A Hugging Face directory or hub id."""
    weights_file: Path
    """Shared memory that `WeightSlots` maps, or the handle of the trainer's buffer on the GPU."""
    num_slots: int
    threads: int
    tile_groups: int
    """A tile is never smaller than this; a short one is padded."""
    seed: int
    deterministic: bool
    published: tuple[int, ...] = ()
    """Weight versions already in shared memory: those an engine that replaces another can read at once."""


class Decoder(Protocol):
    """Draws a tile."""

    def decode(self, requests: Sequence[GroupRequest]) -> list[list[DecodedRow]]:
        """Completions of each request, in completion-index order."""


class TorchEngine:
    """Draws whole groups, a tile of them at a time, with whichever of the published weights a request names."""

    def __init__(self, spec: EngineSpec) -> None:
        torch.set_num_threads(spec.threads)
        self._spec = spec
        self._model = AutoModelForCausalLM.from_pretrained(spec.model_path, dtype=torch.float32).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(spec.model_path)
        self._slots = WeightSlots(spec.weights_file, self._model, spec.num_slots)
        self._decoder: Decoder = TileDecoder(self._model, self._end_tokens(), spec.seed, spec.deterministic)
        self._received: set[int] = set()
        for weight_version in spec.published:
            self.receive_weights(weight_version)
        self._loaded = -1

    def _end_tokens(self) -> list[int]:
        end = self._model.generation_config.eos_token_id
        return end if isinstance(end, list) else [end]

    def receive_weights(self, weight_version: int) -> int:
        """Makes a published version available to requests; returns its checksum as read from shared memory.

        Runs beside a generation in progress, which goes on with its own version. The slot this version overwrote
        held `weight_version - num_slots`, so that one is gone.
        """
        checksum = self._slots.checksum(weight_version)
        self._received = {v for v in self._received if v > weight_version - self._spec.num_slots} | {weight_version}
        return checksum

    def generate(self, requests: Sequence[GroupRequest]) -> list[Group]:
        """One tile: the groups of up to `tile_groups` requests with the same sampling and weight version.

        Raises WeightMismatch for a version this engine does not hold.
        """
        self._load(requests[0].weight_version)
        padded = list(requests)
        if self._spec.deterministic:
            padded += [requests[-1]] * (self._spec.tile_groups - len(requests))
        decoded = self._decoder.decode(padded)
        return [self._group(request, rows) for request, rows in zip(requests, decoded, strict=False)]

    def _load(self, weight_version: int) -> None:
        if weight_version not in self._received:
            raise WeightMismatch(f"a request must name published weights; got version {weight_version}, published are "
                                 f"{sorted(self._received)}. Sync before submitting.")
        if self._loaded != weight_version:
            views = self._slots.views(weight_version)
            for name, parameter in self._model.named_parameters():
                parameter.data = views[name]
            self._loaded = weight_version

    def _group(self, request: GroupRequest, rows: Sequence[DecodedRow]) -> Group:
        completions = tuple(
            Completion(
                token_ids=row.token_ids,
                logprobs=row.logprobs,
                text=self._tokenizer.decode(row.token_ids.tolist(), skip_special_tokens=True),
                finish_reason="stop" if row.stopped else "length",
                weight_version=request.weight_version,
            )
            for row in rows
        )
        return Group(request.key, request.prompt, completions)
