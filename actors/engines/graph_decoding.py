"""Decoding on a GPU: prompts once per group, then each token of a tile, by replaying two CUDA graphs.

At the length of a haiku an engine's host code costs more than the card's work, so all prompts of a tile are one launch,
and a step of the whole tile, sampling included, is another. A group's completions read their prompt's keys and values
together, as one matrix product.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from actors.engines.decoding import MASKED, DecodedRow, decoded_rows, left_pad, sample, uniform_draws
from actors.kernels import has_kernels
from rlhaiku.types import GroupRequest, Sampling

ATTENTION = "rlhaiku_groups"
PROMPT_MULTIPLE = 16
"""Prompts are padded to a multiple of this, so that few graphs serve all tiles."""
LOOK_EVERY = 8
"""Tokens between looks at whether everybody has finished: each look waits for the card."""


@dataclass(frozen=True, slots=True)
class TileShape:
    """What a tile's graphs are made for."""

    groups: int
    group_size: int
    prompt_tokens: int
    sampling: Sampling


class GroupCache(Cache):  # type: ignore[misc]
    """Keys and values in fixed places: prompts [P, heads, L, D], one row a group; completions [P * G, heads, T, D]."""

    def __init__(self, model: PreTrainedModel, shape: TileShape) -> None:
        super().__init__(layers=[])
        config, device, dtype = model.config, model.device, model.dtype
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        layers, heads = config.num_hidden_layers, config.num_key_value_heads
        rows, tokens = shape.groups * shape.group_size, shape.sampling.max_tokens
        prompts, completions = (shape.groups, heads, shape.prompt_tokens, width), (rows, heads, tokens, width)
        self.prompts = torch.zeros(2, layers, *prompts, device=device, dtype=dtype)
        self.completions = torch.zeros(2, layers, *completions, device=device, dtype=dtype)
        self.prompt_mask = torch.zeros(shape.groups, shape.prompt_tokens, dtype=torch.bool, device=device)
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        """[1] of the newest token: where its keys and values go when it is forwarded."""
        self.is_prompt = True

    def update(self, key: Tensor, value: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """Keeps new keys and values, [rows, heads, tokens, D]; returns the prompts', or all of the completions'."""
        if self.is_prompt:
            self.prompts[0, layer].copy_(key)
            self.prompts[1, layer].copy_(value)
            return key, value
        keys, values = self.completions[0, layer], self.completions[1, layer]
        keys.index_copy_(2, self.column, key)
        values.index_copy_(2, self.column, value)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are passed with every forward; nobody needs it."""
        return 0


def group_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *, scaling: float,
    groups: GroupCache, **kwargs: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:  # fmt: skip
    """One new token per row, query [R, heads, 1, D], over its group's prompt and its own past; prompts as usual."""
    if groups.is_prompt:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling)
        return output, None
    prompt_keys, prompt_values = groups.prompts[:, module.layer_idx]  # type: ignore[index]
    if has_kernels() and query.is_cuda:
        from actors.engines.group_kernel import attend, fits

        if fits(query, key, len(groups.prompt_mask)):
            prompts = prompt_keys, prompt_values, groups.prompt_mask
            return attend(query, prompts, (key, value, groups.column), scaling), None
    rows, heads, _, width = query.shape
    count, kv_heads, length = prompt_keys.shape[:3]
    size, repeat = rows // count, heads // kv_heads
    own = query.view(rows * kv_heads, repeat, width)
    together = query.view(count, size, kv_heads, repeat, width).transpose(1, 2).reshape(count * kv_heads, -1, width)

    to_prompt = _product(together, prompt_keys.flatten(0, 1).transpose(1, 2))
    to_prompt = to_prompt.view(count, kv_heads, size, repeat, length).transpose(1, 2)
    to_prompt = to_prompt.masked_fill(~groups.prompt_mask[:, None, None, None], -torch.inf)
    to_own = _product(own, key.flatten(0, 1).transpose(1, 2))
    future = torch.arange(key.shape[2], device=key.device) > groups.column
    to_own = to_own.masked_fill(future, -torch.inf)
    scores = torch.cat([to_prompt.reshape(rows * kv_heads, repeat, length), to_own], -1)
    weights = (scores * scaling).softmax(-1).to(value.dtype)

    of_prompt, of_own = torch.split(weights, [length, key.shape[2]], -1)
    of_prompt = of_prompt.reshape(count, size, kv_heads, repeat, length).transpose(1, 2)
    prompt_part = of_prompt.reshape(count * kv_heads, -1, length) @ prompt_values.flatten(0, 1)
    prompt_part = prompt_part.view(count, kv_heads, size, repeat, width).transpose(1, 2)
    output = prompt_part.reshape(rows * kv_heads, repeat, width) + of_own @ value.flatten(0, 1)
    return output.view(rows, 1, heads, width), None


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Batched a @ b in fp32: scores rounded to bf16 would be off by a few hundredths."""
    return torch.bmm(a, b, out_dtype=torch.float32) if a.is_cuda else torch.bmm(a.float(), b.float())


def _sample(logits: Tensor, temperature: float, draws: Tensor) -> tuple[Tensor, Tensor]:
    """`sample`, by a kernel where there is one."""
    if has_kernels() and logits.is_cuda and temperature > 0:
        from actors.engines.sample_kernel import draw

        return draw(logits, temperature, draws)
    return sample(logits, temperature, draws)


AttentionInterface.register(ATTENTION, group_attention)


class GraphDecoder:
    """Decodes tiles with one model, like `TileDecoder`; on a CPU it steps without a graph, for tests."""

    def __init__(self, model: PreTrainedModel, end_tokens: Sequence[int], seed: int) -> None:
        model.set_attn_implementation(ATTENTION)
        self._model, self._seed = model, seed
        self._end_tokens = torch.tensor(sorted(end_tokens), device=model.device)
        self._tiles: dict[TileShape, _Tile] = {}
        self._pool: Any = None  # of memory, shared by the graphs: they never run at the same time

    @torch.inference_mode()
    def decode(self, requests: Sequence[GroupRequest]) -> list[list[DecodedRow]]:
        """Completions of each request, in completion-index order; all have the same group size and sampling."""
        group_size, sampling = requests[0].group_size, requests[0].sampling
        prompt_ids, mask = left_pad([request.prompt.token_ids for request in requests], PROMPT_MULTIPLE)
        shape = TileShape(len(requests), group_size, prompt_ids.shape[1], sampling)
        tile = self._tiles.get(shape)
        draws = torch.cat([uniform_draws(self._seed, r.key, group_size, sampling.max_tokens) for r in requests])
        if tile is None:
            tile = self._tiles[shape] = _Tile(self._model, shape, self._end_tokens)
            if self._model.device.type == "cuda" and sampling.max_tokens > 1:
                tile.begin(prompt_ids, mask, draws)
                self._pool = tile.capture(self._pool)
        tile.begin(prompt_ids, mask, draws)
        for column in range(1, sampling.max_tokens):
            tile.step()
            if column % LOOK_EVERY == 0 and not tile.alive.any():
                break
        rows = tile.results()
        return [rows[start : start + group_size] for start in range(0, len(rows), group_size)]


class _Tile:
    """The fixed places of one shape, and the graphs that draw a tile's first tokens and then one more for every row."""

    def __init__(self, model: PreTrainedModel, shape: TileShape, end_tokens: Tensor) -> None:
        self._model, self._shape, self._end_tokens = model, shape, end_tokens
        rows, tokens, device = shape.groups * shape.group_size, shape.sampling.max_tokens, model.device
        self._cache = GroupCache(model, shape)
        self._prompt_ids = torch.zeros(shape.groups, shape.prompt_tokens, dtype=torch.long, device=device)
        self._draws = torch.zeros(rows, tokens, dtype=torch.float64, device=device)
        self._tokens = torch.zeros(rows, tokens, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(rows, tokens, device=device)
        self._newest = torch.zeros(rows, dtype=torch.long, device=device)
        self._positions = torch.zeros(rows, dtype=torch.long, device=device)
        self.alive = torch.ones(rows, dtype=torch.bool, device=device)
        """[R] rows that have not drawn an end token."""
        self._first: Callable[[], None] = self._take_prompts
        self.step: Callable[[], None] = self._take_step
        """Draws one more token for every row."""

    def begin(self, prompt_ids: Tensor, mask: Tensor, draws: Tensor) -> None:
        """Forwards the prompts, [P, L] each, and draws every row's first token."""
        self._prompt_ids.copy_(prompt_ids)
        self._cache.prompt_mask.copy_(mask)
        self._draws.copy_(draws)
        self._first()

    def capture(self, pool: Any) -> Any:  # noqa: ANN401  (a graphs' memory pool)
        """Records both graphs; the tile must have begun. Returns the pool for the next graph."""
        for name, work in (("_first", self._take_prompts), ("step", self._take_step)):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                work()  # once before: libraries allocate what they need the first time
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # thread_local: another thread may receive weights meanwhile.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                work()
            setattr(self, name, graph.replay)
            pool = graph.pool()
        return pool

    def _take_prompts(self) -> None:
        cache, mask = self._cache, self._cache.prompt_mask
        self._tokens.fill_(MASKED)
        self.alive.fill_(True)
        self._positions.copy_(self._each(mask.sum(1)))
        cache.column.fill_(-1)
        cache.is_prompt = True
        length = mask.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        allowed = (causal & mask[:, None, :]) | torch.eye(length, dtype=torch.bool, device=mask.device)
        positions = (mask.cumsum(1) - 1).clamp_(min=0)
        self._draw(self._each(self._forward(self._prompt_ids, positions, allowed[:, None])))
        cache.is_prompt = False

    def _take_step(self) -> None:
        logits = self._forward(self._newest[:, None], self._positions[:, None], None)
        self._positions += 1
        self._draw(logits)

    def _each(self, of_groups: Tensor) -> Tensor:
        """[P, ...] -> [R, ...], once for every row of a group."""
        return of_groups.unsqueeze(1).expand(-1, self._shape.group_size, *of_groups.shape[1:]).flatten(0, 1)

    def _forward(self, token_ids: Tensor, positions: Tensor, allowed: Tensor | None) -> Tensor:
        """[rows, V] logits after the last token."""
        hidden = self._model.base_model(
            input_ids=token_ids, attention_mask=allowed, position_ids=positions, past_key_values=self._cache,
            use_cache=True, groups=self._cache,
        ).last_hidden_state[:, -1]
        logits: Tensor = self._model.get_output_embeddings()(hidden)
        return logits

    def _draw(self, logits: Tensor) -> None:
        """Draws the next column."""
        column = self._cache.column.add_(1)
        draws = self._draws.index_select(1, column)[:, 0]
        tokens, logprobs = _sample(logits, self._shape.sampling.temperature, draws)
        self._tokens.index_copy_(1, column, tokens.where(self.alive, MASKED)[:, None])
        self._logprobs.index_copy_(1, column, logprobs[:, None])
        self.alive &= (tokens[:, None] != self._end_tokens).all(1)
        self._newest.copy_(tokens)

    def results(self) -> list[DecodedRow]:
        """Every row's tokens and logprobs."""
        return decoded_rows(self._tokens, self._logprobs, ~self.alive)
