"""The rollout engine of a GPU: vLLM inside one Ray actor, with weights taken over CUDA IPC from the trainer's buffer.

vLLM runs in the actor's own process (no engine-core process beside it), so that whoever kills the actor frees its GPU
memory too. It is imported when an engine starts, so that everybody else may import this file without it.
"""

import hashlib
import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from actors.engines.device_weights import DeviceWeights
from actors.weight_slots import Shapes
from rlhaiku.errors import WeightMismatch
from rlhaiku.types import Completion, FinishReason, Group, GroupRequest, Sampling

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # it compiles kernels when it starts; vLLM's own sampler draws by request seed
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
"""Set before vLLM is imported; a value the user has set wins."""

PROMPT_ROOM = 512
"""Longest prompt, in tokens; a chat that asks for a haiku has about 60."""
KV_BYTES = 16 << 30
"""Most that the key-value cache takes; completions beyond it wait inside vLLM."""
GRAPH_SIZES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
SEED_BITS = 48
"""Of a group's seed: vLLM adds the completion index to it and keeps it in 64 signed bits."""


@dataclass(frozen=True, slots=True)
class VllmSpec:
    """Everything an engine needs to start, or to start again after it died."""

    model_path: str
    """A Hugging Face directory or hub id."""
    weights_file: Path
    """Where the trainer leaves the handle of its buffer, see `DeviceWeightSlots`."""
    num_slots: int
    seed: int
    max_sequences: int
    """Most completions generated at once."""
    max_tokens: int
    """Longest completion, in tokens."""
    published: tuple[int, ...] = ()
    """Weight versions already in the buffer: those an engine that replaces another can read at once."""
    may_sleep: bool = False
    """Take memory so that `sleep` can give it back."""
    options: tuple[tuple[str, Any], ...] = ()
    """Further arguments of `vllm.LLM`, which win over ours."""


class VllmEngine:
    """Draws whole groups, one vLLM request each, with whichever of the published weights a request names."""

    def __init__(self, spec: VllmSpec) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from vllm import LLM

        self._spec = spec
        self._tokenizer = AutoTokenizer.from_pretrained(spec.model_path)
        self._end_tokens = _end_tokens(spec.model_path)
        self._llm = LLM(**_arguments(spec))
        self._model: nn.Module = self._llm.apply_model(_itself)[0]
        self._stream = torch.cuda.current_stream()
        """vLLM's own; Ray runs methods in other threads, which begin on the default stream."""
        self._weights = DeviceWeights(spec.weights_file, spec.num_slots, spec.published)
        self._views: dict[str, Tensor] = {}
        self._asleep = False
        self._at_work = Lock()

    def receive_weights(self, weight_version: int) -> int:
        """Makes a published version available to requests; returns its checksum as read from the trainer's buffer.

        Runs beside a generation in progress, which goes on with its own version.
        """
        return self._weights.receive(weight_version)

    def generate(self, requests: Sequence[GroupRequest]) -> list[Group]:
        """The groups of requests with the same weight version, all at once; wakes up if it was asleep.

        Raises WeightMismatch for a version this engine does not hold, or if loading it went wrong.
        """
        with self._at_work, torch.cuda.stream(self._stream):
            self._wake_up()
            self._load(requests[0].weight_version)
            prompts = [{"prompt_token_ids": list(request.prompt.token_ids)} for request in requests]
            outputs = self._llm.generate(prompts, [self._parameters(each) for each in requests], use_tqdm=False)
        return [self._group(request, output) for request, output in zip(requests, outputs, strict=True)]

    def sleep(self) -> None:
        """Gives GPU memory back, weights included, after the generation in progress; needs `may_sleep`."""
        with self._at_work:
            if not self._asleep:
                self._llm.sleep(level=2)
                self._asleep, self._weights.loaded = True, -1

    def _wake_up(self) -> None:
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False

    def _load(self, weight_version: int) -> None:
        if self._weights.loaded == weight_version:
            return
        self._weights.load(weight_version, self._own)
        if not self._llm.reset_prefix_cache():
            raise WeightMismatch(f"vLLM must forget keys and values from before version {weight_version}; it is busy")

    def _own(self, shapes: Shapes) -> dict[str, Tensor]:
        if not self._views:  # they stay where they are: waking up, too, puts memory back at its old address
            self._views = checkpoint_views(self._model, shapes)
        return self._views

    def _parameters(self, request: GroupRequest) -> Any:  # noqa: ANN401  (vLLM's SamplingParams)
        from vllm import SamplingParams

        sampling = request.sampling
        return SamplingParams(
            n=_draws(request.group_size, sampling),
            seed=group_seed(self._spec.seed, request),
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            stop_token_ids=self._end_tokens,
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            detokenize=False,  # once, at the end
        )

    def _group(self, request: GroupRequest, output: Any) -> Group:  # noqa: ANN401  (vLLM's RequestOutput)
        completions = []
        for drawn in output.outputs:
            token_ids = list(drawn.token_ids)
            finish_reason: FinishReason = "stop" if token_ids and token_ids[-1] in self._end_tokens else "length"
            completions.append(Completion(
                token_ids=array("i", token_ids),
                logprobs=array("d", drawn.logprobs.logprobs),
                text=self._tokenizer.decode(token_ids, skip_special_tokens=True),
                finish_reason=finish_reason,
                weight_version=request.weight_version,
            ))
        repeats = request.group_size // len(completions)
        return Group(request.key, request.prompt, tuple(completions * repeats))


def checkpoint_views(model: nn.Module, shapes: Shapes) -> dict[str, Tensor]:
    """vLLM's parameters under the names they have in a checkpoint, as views.

    What vLLM has fused (q, k and v; gate and up) is cut by vLLM's own table of it; rows that pad a vocabulary are left
    out. `shapes`: of the checkpoint. Raises WeightMismatch if a name has no place.
    """
    parts: Mapping[str, Sequence[str]] = getattr(model, "packed_modules_mapping", {})
    views: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        *path, module, kind = name.split(".")
        start = 0
        for part in parts.get(module, [module]):
            original = ".".join([*path, part, kind])
            if original in shapes:
                end = start + shapes[original][0]
                views[original] = parameter.data[start:end]
                start = end
    lost = [name for name, shape in shapes.items() if name not in views or views[name].shape != shape]
    if lost:
        raise WeightMismatch(f"every weight of the trainer must have a place in vLLM; {len(lost)} have none, e.g. "
                             f"{lost[0]}. Does model.path name the same model on both sides?")
    return views


def group_seed(seed: int, request: GroupRequest) -> int:
    """Depends on the run's seed, the pass and the prompt, so that a group that is drawn again is drawn alike.

    Alike, not equal: vLLM's logits change in their last bits with what else is in the batch.
    """
    name = f"{seed}/{request.key.pass_index}/{request.key.prompt_id}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8]) >> (64 - SEED_BITS)


def kv_cache_bytes(config: Any, num_tokens: int) -> int:  # noqa: ANN401  (a transformers configuration)
    """Keys and values in bf16 of so many tokens, in all layers."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return 2 * 2 * int(config.num_hidden_layers * heads * head_dim) * num_tokens


def _arguments(spec: VllmSpec) -> dict[str, Any]:
    """What `vllm.LLM` is started with: memory for this run's completions and no more, so that a trainer fits beside."""
    config = AutoConfig.from_pretrained(spec.model_path)
    longest = min(config.max_position_embeddings, PROMPT_ROOM + spec.max_tokens)
    tokens = max(longest + 256, spec.max_sequences * (spec.max_tokens + 128))
    return {
        "model": spec.model_path,
        "dtype": "bfloat16",
        "seed": spec.seed,
        "skip_tokenizer_init": True,
        "max_model_len": longest,
        "max_num_seqs": spec.max_sequences,
        "kv_cache_memory_bytes": min(KV_BYTES, kv_cache_bytes(config, tokens)),
        "gpu_memory_utilization": 0.01,  # only checked against what is free: the line above decides
        "compilation_config": {"cudagraph_capture_sizes": capture_sizes(spec.max_sequences)},
        "logprobs_mode": "processed_logprobs",  # at the temperature, as the trainer takes them
        "enable_prefix_caching": True,  # a prompt is computed once for its whole group
        "enable_sleep_mode": spec.may_sleep,
        "distributed_executor_backend": "uni",
    } | dict(spec.options)


def capture_sizes(max_sequences: int) -> list[int]:
    """Batch sizes to have CUDA graphs for, up to the largest batch; what is between is padded.

    Few, since each takes a second to capture; vLLM's own end at 512, beyond which every step would run without.
    """
    return [size for size in GRAPH_SIZES if size < max_sequences] + [max_sequences]


def _end_tokens(model_path: str) -> list[int]:
    try:
        end = GenerationConfig.from_pretrained(model_path).eos_token_id
    except OSError:  # not every model has one
        end = AutoConfig.from_pretrained(model_path).eos_token_id
    return end if isinstance(end, list) else [end]


def _draws(group_size: int, sampling: Sampling) -> int:
    """Greedy completions are all the same: vLLM draws one."""
    return group_size if sampling.temperature > 0 else 1


def _itself(model: nn.Module) -> nn.Module:
    return model
