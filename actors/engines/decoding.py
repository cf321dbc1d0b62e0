"""One decode tile: whole groups, prompts forwarded once per group, every draw from its own counter-based stream."""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache

from rlhaiku.types import GroupKey, GroupRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MASKED = -1


@dataclass(frozen=True, slots=True)
class DecodedRow:
    """One completion as tokens."""

    token_ids: "array[int]"
    logprobs: "array[float]"
    stopped: bool
    """Whether the last token is an end token; otherwise the length limit cut it."""


class SharedPromptCache(Cache):  # type: ignore[misc]
    """Keys and values of a tile: the prompts' are computed once per group, then copied to the group's rows.

    Space for the whole completion is taken up front, since growing by concatenation copies everything every token.
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[])
        self._keys: list[Tensor] = [torch.empty(0)] * num_layers
        self._values: list[Tensor] = [torch.empty(0)] * num_layers
        self._length = 0

    def update(self, key: Tensor, value: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """Adds [R, heads, T, head_dim] of new tokens to one layer and returns all of it so far."""
        if self._length == 0:
            self._keys[layer], self._values[layer] = key, value
            return key, value
        end = self._length + key.shape[-2]
        self._keys[layer][:, :, self._length : end] = key
        self._values[layer][:, :, self._length : end] = value
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens held per row."""
        return self._length

    def advance(self, num_tokens: int) -> None:
        """Counts tokens that all layers have added."""
        self._length += num_tokens

    def spread(self, group_size: int, max_tokens: int) -> None:
        """Turns one row per group into `group_size` rows, with room for `max_tokens` more tokens each."""
        for tensors in (self._keys, self._values):
            for layer, prompt in enumerate(tensors):
                groups, heads, length, width = prompt.shape
                rows = prompt.new_empty(groups * group_size, heads, length + max_tokens, width)
                rows[:, :, :length] = prompt.repeat_interleave(group_size, dim=0)
                tensors[layer] = rows

    def keep_rows(self, rows: Tensor) -> None:
        """Forgets all rows but these."""
        self._keys = [keys[rows] for keys in self._keys]
        self._values = [values[rows] for values in self._values]


def uniform_draws(seed: int, key: GroupKey, group_size: int, max_tokens: int) -> Tensor:
    """[G, max_tokens] float64 in [0, 1): a stream of its own for each (seed, pass, prompt, completion index)."""
    draws = np.empty((group_size, max_tokens))
    for index in range(group_size):
        name = f"{seed}/{key.pass_index}/{key.prompt_id}/{index}".encode()
        words = np.frombuffer(hashlib.sha256(name).digest()[:16], np.uint64)
        draws[index] = np.random.Generator(np.random.Philox(key=words)).random(max_tokens)
    return torch.from_numpy(draws)


def sample(logits: Tensor, temperature: float, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Draws one token per row by inverting the cumulative distribution; temperature 0 takes the likeliest.

    logits [R, V], draws [R]; returns tokens [R] and their logprobs [R] at the temperature.
    """
    logprobs = (logits.float() / (temperature or 1.0)).log_softmax(-1)
    if temperature == 0:
        tokens = logprobs.argmax(-1)
    else:
        cumulative = logprobs.exp().cumsum(-1, dtype=torch.float32 if logits.is_cuda else torch.float64)
        total = cumulative[:, -1]
        below = torch.nextafter(total, torch.zeros_like(total))  # a draw that rounds to 1 must not fall off the end
        thresholds = torch.minimum((draws * total).to(total.dtype), below)
        tokens = torch.searchsorted(cumulative, thresholds[:, None], right=True)[:, 0]
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


class TileDecoder:
    """Decodes tiles with one model. Every request of a tile has the same group size and sampling."""

    def __init__(self, model: "PreTrainedModel", end_tokens: Sequence[int], seed: int, deterministic: bool) -> None:
        """`deterministic`: finished rows stay in the batch, since its size changes the bits of the others."""
        self._model, self._seed, self._deterministic = model, seed, deterministic
        self._end_tokens = torch.tensor(sorted(end_tokens))

    @torch.inference_mode()
    def decode(self, requests: Sequence[GroupRequest]) -> list[list[DecodedRow]]:
        """Completions of each request, in completion-index order."""
        group_size, sampling = requests[0].group_size, requests[0].sampling
        prompt_ids, mask = left_pad([request.prompt.token_ids for request in requests])
        cache = SharedPromptCache(self._model.config.num_hidden_layers)
        logits = self._prefill(prompt_ids, mask, cache)
        cache.spread(group_size, sampling.max_tokens)
        completions_seen = mask.new_ones(len(mask), sampling.max_tokens)
        tile = _Tile(
            draws=torch.cat([uniform_draws(self._seed, r.key, group_size, sampling.max_tokens) for r in requests]),
            visible=torch.cat([mask, completions_seen], dim=1).repeat_interleave(group_size, dim=0),
            positions=mask.sum(1).repeat_interleave(group_size, dim=0),
            end_tokens=self._end_tokens,
        )
        logits = logits.repeat_interleave(group_size, dim=0)
        for column in range(sampling.max_tokens):
            tokens = tile.append(column, *sample(logits, sampling.temperature, tile.draws[tile.rows, column]))
            if not tile.alive.any():
                break
            if not self._deterministic and tile.alive.sum() * 2 <= len(tile.rows):
                tokens = tokens[tile.alive]
                cache.keep_rows(tile.drop_finished())
            logits = self._step(tokens, tile, cache)
        rows = tile.results()
        return [rows[start : start + group_size] for start in range(0, len(rows), group_size)]

    def _prefill(self, prompt_ids: Tensor, mask: Tensor, cache: SharedPromptCache) -> Tensor:
        """[groups, V] logits after each prompt; fills the cache with one row per group."""
        length = prompt_ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        allowed = (causal & mask[:, None, :]) | torch.eye(length, dtype=torch.bool)
        positions = (mask.cumsum(1) - 1).clamp_(min=0)
        output = self._model(
            input_ids=prompt_ids, attention_mask=allowed[:, None], position_ids=positions, past_key_values=cache,
            use_cache=True, logits_to_keep=1,
        )
        cache.advance(length)
        logits: Tensor = output.logits[:, -1]
        return logits

    def _step(self, tokens: Tensor, tile: "_Tile", cache: SharedPromptCache) -> Tensor:
        """[rows, V] logits after one more token per row."""
        seen = cache.get_seq_length() + 1
        output = self._model(
            input_ids=tokens[:, None], attention_mask=tile.visible[tile.rows, None, None, :seen],
            position_ids=tile.positions[tile.rows, None], past_key_values=cache, use_cache=True,
        )
        cache.advance(1)
        tile.positions += 1
        logits: Tensor = output.logits[:, -1]
        return logits


class _Tile:
    """What a tile has drawn so far; `rows` are the rows still in the batch, `alive` those of them not finished."""

    def __init__(self, draws: Tensor, visible: Tensor, positions: Tensor, end_tokens: Tensor) -> None:
        self.draws, self.visible, self.positions = draws, visible, positions
        self._end_tokens = end_tokens
        self.rows = torch.arange(len(draws))
        self.alive = torch.ones(len(draws), dtype=torch.bool)
        self._tokens = torch.full(draws.shape, MASKED)
        self._logprobs = torch.zeros(draws.shape)

    def append(self, column: int, tokens: Tensor, logprobs: Tensor) -> Tensor:
        """Keeps the draws of rows that are alive, ends those that drew an end token; returns the tokens drawn."""
        living = self.rows[self.alive]
        self._tokens[living, column] = tokens[self.alive]
        self._logprobs[living, column] = logprobs[self.alive]
        self.alive &= ~torch.isin(tokens, self._end_tokens)
        return tokens

    def drop_finished(self) -> Tensor:
        """Takes finished rows out of the batch; returns the batch indices that stay."""
        stay = self.alive.nonzero()[:, 0]
        self.rows, self.alive = self.rows[stay], self.alive[stay]
        return stay

    def results(self) -> list[DecodedRow]:
        """Every row's tokens and logprobs."""
        return decoded_rows(self._tokens, self._logprobs, torch.isin(self._tokens, self._end_tokens).any(1))


def decoded_rows(tokens: Tensor, logprobs: Tensor, stopped: Tensor) -> list[DecodedRow]:
    """Rows as they leave an engine: tokens [R, T], MASKED behind a row's last one, logprobs [R, T], stopped [R]."""
    lengths = (tokens != MASKED).sum(1).tolist()
    ids, values = tokens.cpu().to(torch.int32).numpy(), logprobs.cpu().double().numpy()
    return [
        DecodedRow(array("i", ids[row, :length].tobytes()), array("d", values[row, :length].tobytes()), ended)
        for row, (length, ended) in enumerate(zip(lengths, stopped.tolist(), strict=True))
    ]


def left_pad(prompts: Sequence[Sequence[int]], multiple: int = 1) -> tuple[Tensor, Tensor]:
    """[groups, L] token ids ending in the same column, and the mask of the real ones; L is a multiple of `multiple`."""
    width = -(-max(len(prompt) for prompt in prompts) // multiple) * multiple
    token_ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        token_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = True
    return token_ids, mask
