"""One launch for what a layer's new tokens look at: their group's prompt and their own past, scores to values.

In torch it is a dozen launches over thousands of tiny products, a third of a step. Imported only where Triton is.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_QUERIES = 128
"""Of a group and a key head, all in one program: beyond that its registers would not hold them."""
LEAST = 16
"""Smallest side of a product that the matrix units take."""
UNSEEN = tl.constexpr(-1e30)
"""Score of what must not be looked at: finite, so that a block without anything to see makes no NaN."""


def fits(query: Tensor, keys: Tensor, groups: int) -> bool:
    """Whether the kernel takes these shapes: query [R, heads, 1, D], keys [R, kv_heads, T, D] of so many groups."""
    rows, heads, _, width = query.shape
    return width >= LEAST and width & (width - 1) == 0 and rows // groups * (heads // keys.shape[1]) <= MOST_QUERIES


def attend(
    query: Tensor, prompts: tuple[Tensor, Tensor, Tensor], own: tuple[Tensor, Tensor, Tensor], scaling: float
) -> Tensor:
    """[R, 1, heads, D] values of one new token per row, query [R, heads, 1, D].

    `prompts`: keys and values [P, kv_heads, L, D] and which of them are real, [P, L]; `own`: keys and values
    [R, kv_heads, T, D] and the newest column of them that is there, [1].
    """
    prompt_keys, prompt_values, mask = prompts
    keys = own[0]
    rows, heads, _, width = query.shape
    groups, kv_heads, length, _ = prompt_keys.shape
    size, repeat = rows // groups, heads // kv_heads
    queries = max(LEAST, triton.next_power_of_2(size * repeat))
    output = torch.empty(rows, heads, width, dtype=query.dtype, device=query.device)
    shape = (kv_heads, size, repeat, keys.shape[2], width, queries)
    _attend[(groups, kv_heads)](
        query.reshape(rows, heads, width), (prompt_keys, prompt_values, mask.view(torch.uint8), length), own, output,
        scaling, shape, 32, num_warps=4 if queries < 64 else 8,
    )  # fmt: skip
    return output[:, None]


@triton.jit
def _look(
    query: tl.tensor, key: tl.tensor, value: tl.tensor, seen: tl.tensor, scaling: tl.tensor, sums: tl.tuple
) -> tl.tuple:
    """Adds a block of keys to a running softmax: highest score so far, sum of weights, weighted values."""
    best, total, mixed = sums
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scaling
    scores = tl.where(seen, scores, UNSEEN)
    higher = tl.maximum(best, tl.max(scores, 1))
    shrink = tl.exp(best - higher)
    weights = tl.exp(scores - higher[:, None])
    total = total * shrink + tl.sum(weights, 1)
    mixed = mixed * shrink[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    return higher, total, mixed


@triton.jit
def _attend(
    query_at: tl.tensor, prompts: tl.tuple, own: tl.tuple, output: tl.tensor, scaling: tl.tensor,
    SHAPE: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """All queries of a group that share a key head."""
    prompt_keys, prompt_values, mask, length = prompts
    keys, values, newest_at = own
    KV_HEADS: tl.constexpr = SHAPE[0]
    SIZE: tl.constexpr = SHAPE[1]
    REPEAT: tl.constexpr = SHAPE[2]
    TOKENS: tl.constexpr = SHAPE[3]
    WIDTH: tl.constexpr = SHAPE[4]
    QUERIES: tl.constexpr = SHAPE[5]
    group, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place, column, width = tl.arange(0, QUERIES), tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    member = place // REPEAT
    at = ((group * SIZE + member) * KV_HEADS + kv_head) * REPEAT + place % REPEAT
    at = at[:, None] * WIDTH + width[None, :]
    is_query = (member < SIZE)[:, None]
    query = tl.load(query_at + at, mask=is_query, other=0.0)
    best = tl.full([QUERIES], UNSEEN, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([QUERIES, WIDTH], tl.float32)

    for start in range(0, length, BLOCK):
        where = start + column
        inside = where < length
        seen = tl.load(mask + group * length + where, mask=inside, other=0) != 0
        cell = ((group * KV_HEADS + kv_head) * length + where)[:, None] * WIDTH + width[None, :]
        key = tl.load(prompt_keys + cell, mask=inside[:, None], other=0.0)
        value = tl.load(prompt_values + cell, mask=inside[:, None], other=0.0)
        best, total, mixed = _look(query, key, value, seen[None, :], scaling, (best, total, mixed))

    newest = tl.load(newest_at)
    for other in range(SIZE):
        for start in range(0, TOKENS, BLOCK):
            where = start + column
            past = (where <= newest) & (where < TOKENS)
            cell = (((group * SIZE + other) * KV_HEADS + kv_head) * TOKENS + where)[:, None] * WIDTH + width[None, :]
            key = tl.load(keys + cell, mask=past[:, None], other=0.0)
            value = tl.load(values + cell, mask=past[:, None], other=0.0)
            seen = (member == other)[:, None] & past[None, :]
            best, total, mixed = _look(query, key, value, seen, scaling, (best, total, mixed))

    tl.store(output + at, (mixed / total[:, None]).to(query.dtype), mask=is_query)
