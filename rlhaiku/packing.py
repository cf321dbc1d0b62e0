"""Shared-prompt packing for the torch trainer: a group's prompt is forwarded once, followed by its completions.

    row          p0 p1 p2 | a0 a1 | b0 b1 b2 | pad
    segment       0  0  0 |  1  1 |  2  2  2 |  -1     a token sees the prompt and its own segment, causally
    position      0  1  2 |  3  4 |  3  4  5 |   0     each completion continues the prompt
    predicted_by            2  3     2  5  6           row index whose logits give the token's logprob

Numbers are plain numpy, so this imports without torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhaiku.types import TrainGroup, TrainSample

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

Row = tuple[TrainGroup, Sequence[TrainSample]]
"""A group, and those of its completions that share a row with its prompt."""

PAD_SEGMENT = -1
PROMPT_SEGMENT = 0


@dataclass(frozen=True, slots=True)
class Pack:
    """One micro-batch: R rows of L tokens, and N loss tokens in (row, completion, token) order."""

    token_ids: Ints
    """[R, L] pad positions hold 0."""
    position_ids: Ints
    """[R, L]"""
    segment_ids: Ints
    """[R, L] 0 prompt, 1.. completions, -1 padding."""
    target_rows: Ints
    """[N] row of each loss token."""
    predictor_columns: Ints
    """[N] column whose logits predict the loss token."""
    targets: Ints
    """[N] the loss tokens themselves."""
    rollout_logprobs: Floats
    """[N]"""
    advantages: Floats
    """[N] the completion's advantage, repeated for its tokens."""
    sequence_lengths: Floats
    """[N] length of the completion each loss token belongs to (for the per-sequence mean)."""

    @property
    def num_tokens(self) -> int:
        """Tokens forwarded that are not padding."""
        return int((self.segment_ids != PAD_SEGMENT).sum())


def pack_groups(
    groups: Sequence[TrainGroup], max_tokens: int, shared_prompt: bool, columns: int = 1
) -> Iterator[Pack]:
    """Cuts groups into packs of at most `max_tokens` tokens, padding included (a longer single row stands alone).

    With `shared_prompt`, a row is one group; without, a row is one completion behind its own copy of the prompt:
    the same losses and gradients, for more tokens.

    With more than one of `columns`, packs come in few shapes, for whoever prepares something for every new one, as a
    GPU's attention does: they are a multiple of that wide and, as nearly as they can be, of one height, the longest
    rows first.
    """
    rows = [row for group in groups for row in _rows(group, shared_prompt)]
    if columns > 1:
        yield from _alike(sorted(rows, key=_row_length, reverse=True), max_tokens, columns)
        return
    start = 0
    while start < len(rows):
        end, width = start, 0
        while end < len(rows):
            widened = max(width, _row_length(rows[end]))
            if end > start and widened * (end + 1 - start) > max_tokens:
                break
            end, width = end + 1, widened
        yield _pack(rows[start:end], width)
        start = end


def _alike(rows: Sequence[Row], max_tokens: int, columns: int) -> Iterator[Pack]:
    while rows:
        width = _parts(_row_length(rows[0]), columns) * columns
        packs_left = _parts(len(rows), max(1, max_tokens // width))
        height = _parts(len(rows), packs_left)
        yield _pack(rows[:height], width)
        rows = rows[height:]


def _parts(count: int, most: int) -> int:
    """Into how many parts of at most `most` something has to be cut."""
    return -(-count // most)


def split_groups(groups: Sequence[TrainGroup], num_shares: int) -> list[list[TrainGroup]]:
    """Shares of about equally many tokens, each in the order of `groups`; some are empty where groups are few."""
    loads, owners = [0] * num_shares, dict.fromkeys(range(len(groups)), 0)
    for place in sorted(owners, key=lambda place: -group_tokens(groups[place])):
        owners[place] = loads.index(min(loads))
        loads[owners[place]] += group_tokens(groups[place])
    return [[groups[place] for place, owner in owners.items() if owner == share] for share in range(num_shares)]


def group_tokens(group: TrainGroup) -> int:
    """Tokens of a group's row: its prompt once, and every completion."""
    return _row_length((group, group.samples))


def _rows(group: TrainGroup, shared_prompt: bool) -> list[Row]:
    if shared_prompt:
        return [(group, group.samples)]
    return [(group, (sample,)) for sample in group.samples]


def _row_length(row: Row) -> int:
    group, samples = row
    return len(group.prompt_token_ids) + sum(len(sample.token_ids) for sample in samples)


def _pack(rows: Sequence[Row], width: int) -> Pack:
    shape = (len(rows), width)
    token_ids, position_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    segment_ids = np.full(shape, PAD_SEGMENT, np.int64)
    per_token: list[tuple[Ints, Ints, Ints, Floats, Floats, Floats]] = []
    for row, (group, samples) in enumerate(rows):
        prompt_length = len(group.prompt_token_ids)
        token_ids[row, :prompt_length] = group.prompt_token_ids
        position_ids[row, :prompt_length] = np.arange(prompt_length)
        segment_ids[row, :prompt_length] = PROMPT_SEGMENT
        column = prompt_length
        for segment, sample in enumerate(samples, start=1):
            length = len(sample.token_ids)
            span = slice(column, column + length)
            token_ids[row, span] = sample.token_ids
            position_ids[row, span] = prompt_length + np.arange(length)
            segment_ids[row, span] = segment
            per_token.append(_loss_tokens(row, column, prompt_length, sample))
            column += length
    fields = (np.concatenate(parts) for parts in zip(*per_token, strict=True))
    return Pack(token_ids, position_ids, segment_ids, *fields)


def _loss_tokens(
    row: int, column: int, prompt_length: int, sample: TrainSample
) -> tuple[Ints, Ints, Ints, Floats, Floats, Floats]:
    """The six per-loss-token arrays of one completion that starts at `column`."""
    length = len(sample.token_ids)
    predictors = np.arange(column - 1, column + length - 1)
    predictors[0] = prompt_length - 1  # the first token continues the prompt, whatever lies in between
    return (
        np.full(length, row),
        predictors,
        np.array(sample.token_ids, np.int64),
        np.array(sample.rollout_logprobs, np.float32),
        np.full(length, sample.advantage, np.float32),
        np.full(length, length, np.float32),
    )
