"""What moves through one training step, one frozen type per stage.

    Prompt -> GroupRequest -> Group -> ScoredGroup -> TrainGroup -> TrainBatch -> TrainStats
      1           1-2           2          3             4-5           5            6

Nothing here is filled in later: a value that is not known yet belongs to the next type.
Letters in shapes: P prompts, G completions of one prompt (the group), T tokens of one completion.
What was drawn is held in arrays, `array("i")` and `array("d")`, which go from process to process as bytes.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, ClassVar, Literal

FinishReason = Literal["stop", "length", "abort"]

EVAL_PASS = -1
"""`GroupKey.pass_index` of an evaluation group; training passes count from 0."""


class _Value:
    """Pickled as its constructor and fields, which takes a fifth less time than what a frozen dataclass does itself.

    Groups are pickled as rows instead (`_rows`): they have hundreds of such values in them.
    """

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple([getattr(self, name) for name in self.__match_args__])


@dataclass(frozen=True, slots=True)
class Prompt(_Value):
    """One request for a poem, rendered and tokenized."""

    prompt_id: str
    """Stable across runs and machines: names the row of the data set, never its position in a shuffle."""
    topic: str
    """What the poem shall be about, lower case, e.g. `morning frost`."""
    text: str
    """The rendered chat, generation prompt included, thinking disabled."""
    token_ids: tuple[int, ...]
    """[T] `text` tokenized."""
    reference: str = ""
    """A poem by a person about `topic`, lines separated by newlines; empty if there is none."""


@dataclass(frozen=True, slots=True, order=True)
class GroupKey(_Value):
    """Identity of a group; sorting by it gives the order in which groups were claimed."""

    claim: int
    """0-based position in the run's claim order; position in the list for an evaluation."""
    pass_index: int
    """Which pass over the training prompts, from 0; `EVAL_PASS` for an evaluation."""
    prompt_id: str
    """The prompt of the group."""

    @property
    def is_eval(self) -> bool:
        """Whether the group belongs to an evaluation (it is scored, never trained)."""
        return self.pass_index == EVAL_PASS


@dataclass(frozen=True, slots=True)
class Sampling(_Value):
    """How completions are drawn."""

    temperature: float
    """Softmax temperature; 0 is greedy. `Completion.logprobs` are taken at this temperature."""
    max_tokens: int
    """Longest completion, in tokens, the end-of-turn token included."""


@dataclass(frozen=True, slots=True)
class GroupRequest(_Value):
    """Asks the rollout engines for one group. Made by the coordinator, used up by a `RolloutEngine`."""

    key: GroupKey
    prompt: Prompt
    group_size: int
    """G, completions to draw."""
    sampling: Sampling
    weight_version: int
    """The weights to draw with; an engine that does not hold them refuses."""


@dataclass(frozen=True, slots=True)
class Completion(_Value):
    """One sampled answer."""

    token_ids: "array[int]"
    """[T] sampled tokens; ends with the end-of-turn token iff `finish_reason` is `stop`."""
    logprobs: "array[float]"
    """[T] log-probability of each sampled token at the sampling temperature, by the engine."""
    text: str
    """Decoded tokens without special tokens."""
    finish_reason: FinishReason
    weight_version: int
    """The weights that made it."""


@dataclass(frozen=True, slots=True)
class Group(_Value):
    """A prompt and its G completions: the unit of retry, of advantages and of the ledger."""

    key: GroupKey
    prompt: Prompt
    completions: tuple[Completion, ...]
    """[G] in completion-index order."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_rows, (Group, self.key, self.prompt, Completion, _rows(Completion, self.completions))


@dataclass(frozen=True, slots=True)
class Scored(_Value):
    """A reward that was computed."""

    total: float
    """What the advantage is made of."""
    components: Mapping[str, float] = field(default_factory=dict)
    """The parts of `total` by name, e.g. `structure`, for metrics and reports."""


@dataclass(frozen=True, slots=True)
class Unscored(_Value):
    """A reward that could not be computed. It is not 0: the completion leaves the group instead."""

    reason: str


Reward = Scored | Unscored


@dataclass(frozen=True, slots=True)
class ScoredGroup(_Value):
    """A group and what each completion earned."""

    group: Group
    rewards: tuple[Reward, ...]
    """[G] parallel to `group.completions`."""

    @property
    def key(self) -> GroupKey:
        """The group's identity."""
        return self.group.key


@dataclass(frozen=True, slots=True)
class TrainSample(_Value):
    """One completion to learn from. Every completion token is a loss token."""

    token_ids: "array[int]"
    """[T] completion tokens."""
    rollout_logprobs: "array[float]"
    """[T] log-probabilities the engine gave them, at the sampling temperature."""
    advantage: float
    """The same for every token of the completion."""
    weight_version: int
    """The weights that made it; trainer version minus this is the sample's staleness."""


@dataclass(frozen=True, slots=True)
class TrainGroup(_Value):
    """The scored completions of one prompt, with their advantages."""

    key: GroupKey
    prompt_token_ids: tuple[int, ...]
    """[T] shared by all samples: a trainer may forward it once."""
    samples: tuple[TrainSample, ...]
    """[<= G] unscored completions are gone."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_rows, (TrainGroup, self.key, self.prompt_token_ids, TrainSample, _rows(TrainSample, self.samples))


@dataclass(frozen=True, slots=True)
class TrainBatch(_Value):
    """What one train step learns from. Logical: packing and sharding are the trainer's business."""

    step: int
    """0-based train step."""
    temperature: float
    """Sampling temperature of the rollouts; trainer logprobs are taken at the same one."""
    groups: tuple[TrainGroup, ...]
    """In claim order, never in finish order."""

    @property
    def num_samples(self) -> int:
        """Completions in the batch."""
        return sum(len(group.samples) for group in self.groups)

    @property
    def num_loss_tokens(self) -> int:
        """Completion tokens in the batch."""
        return sum(len(sample.token_ids) for group in self.groups for sample in group.samples)


@dataclass(frozen=True, slots=True)
class TrainStats(_Value):
    """What the trainer saw in one train step; means are over the step's loss tokens."""

    step: int
    loss: float
    """Of the last optimizer step; the policy-gradient term plus `kl_coef` times `kl`."""
    grad_norm: float
    """Before clipping, mean over optimizer steps."""
    lr: float
    clip_fraction: float
    """Share of loss tokens whose importance ratio the clip cut off."""
    logprob_gap: float
    """mean |trainer logprob - rollout logprob|, nats: engine and trainer should agree on the same weights."""
    kl: float
    """To the reference model, nats per token (k3 estimator); 0 when no reference is loaded."""
    num_loss_tokens: int
    num_forward_tokens: int
    """Tokens forwarded, prompts counted once per group, padding not counted."""
    truncated_fraction: float = 0.0
    """Share of loss tokens whose importance ratio was above `algorithm.max_importance_ratio`; 0 without one."""


@dataclass(frozen=True, slots=True)
class SyncReport(_Value):
    """One weight sync, after every engine confirmed it."""

    weight_version: int
    checksum: int
    """CRC-32 over sampled elements of every tensor, equal on the trainer and on all engines."""
    num_bytes: int
    """Payload moved to each engine."""
    seconds: float
    """From asking the trainer to the last engine's confirmation."""


def _rows(kind: type, drawn: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Plain values, a tuple each: a pickler that is asked about every object, as Ray's is, takes twice the time."""
    fields = attrgetter(*kind.__match_args__)  # type: ignore[attr-defined]
    return [(ids.tobytes(), logprobs.tobytes(), *rest) for ids, logprobs, *rest in map(fields, drawn)]


def _from_rows(cls: type, key: GroupKey, prompt: Any, kind: type, rows: Sequence[tuple[Any, ...]]) -> Any:  # noqa: ANN401
    drawn = [kind(array("i", ids), array("d", logprobs), *rest) for ids, logprobs, *rest in rows]
    return cls(key, prompt, tuple(drawn))
