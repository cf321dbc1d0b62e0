"""See README.md."""

import random
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

from vllm import envs as envs

LLM_ARGUMENTS = {
    "dtype", "seed", "skip_tokenizer_init", "max_model_len", "max_num_seqs", "kv_cache_memory_bytes",
    "gpu_memory_utilization", "compilation_config", "logprobs_mode", "enable_prefix_caching", "enable_sleep_mode",
    "distributed_executor_backend", "load_format", "performance_mode", "enforce_eager",
}
COMPILATION = {"cudagraph_capture_sizes", "cudagraph_mode", "mode"}
torch.cuda.current_stream = lambda device=None: None  # without a card torch would refuse


@dataclass
class SamplingParams:
    n: int = 1
    seed: int | None = None
    temperature: float = 1.0
    max_tokens: int | None = 16
    stop_token_ids: list = field(default_factory=list)
    ignore_eos: bool = False
    logprobs: int | None = None
    flat_logprobs: bool = False
    detokenize: bool = True


class LLM:
    def __init__(self, model, **options):
        assert not options.keys() - LLM_ARGUMENTS, options.keys() - LLM_ARGUMENTS
        assert not options.get("compilation_config", {}).keys() - COMPILATION
        self._most = options["max_num_seqs"]
        self._longest = options["max_model_len"]
        self._apart = envs.VLLM_ENABLE_V1_MULTIPROCESSING
        if not self._apart:
            envs.enable_envs_cache()
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: None))

    def apply_model(self, function):
        assert not self._apart, "what the function returns cannot leave the engine's process"
        return [function(torch.nn.Linear(1, 1))]

    def reset_prefix_cache(self):
        return True

    def generate(self, prompts, sampling_params, *, use_tqdm=True):
        assert use_tqdm is False
        params = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
        return [self._output(prompt, each) for prompt, each in zip(prompts, params, strict=True)]

    def _output(self, prompt, params):
        assert params.logprobs == 0 and not params.detokenize
        length = params.max_tokens
        assert len(prompt["prompt_token_ids"]) + length <= self._longest
        drawn = [[random.randrange(100, 1000) for _ in range(length)] for _ in range(params.n)]
        logprobs = SimpleNamespace(logprobs=[-1.0] * length)
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens, logprobs=logprobs) for tokens in drawn])
