"""How groups and rewards lie in the ledger's tables: values that come back equal to the last bit.

Arrays lie there as the machine has them: little endian, as on all that torch and Ray are built for.
"""

import hashlib
import json
import struct
from array import array
from typing import Any

from rlhaiku.types import Completion, FinishReason, GroupRequest, Prompt, Reward, Scored


def wanted(request: GroupRequest) -> tuple[Any, ...]:
    """What makes two requests the same but for their weight version, as the columns hold it."""
    key, prompt, sampling = request.key, request.prompt, request.sampling
    return (
        *(key.claim, key.pass_index, key.prompt_id, _digest(prompt), request.group_size),
        *(sampling.temperature, sampling.max_tokens),
    )


def _digest(prompt: Prompt) -> str:
    parts = [prompt.prompt_id, prompt.topic, prompt.text, prompt.token_ids, prompt.reference]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def completion_row(completion: Completion) -> tuple[Any, ...]:
    """The columns of `completions` from `weight_version` to `logprobs`."""
    return (
        *(completion.weight_version, completion.finish_reason, len(completion.token_ids)),
        completion.text.encode("utf-8", "surrogatepass"),  # half an emoji is a str, but no UTF-8
        completion.token_ids.tobytes(),
        completion.logprobs.tobytes(),
    )


def read_completion(
    token_ids: bytes, logprobs: bytes, text: str, finish_reason: FinishReason, weight_version: int
) -> Completion:
    """What `completion_row` stored."""
    return Completion(array("i", token_ids), array("d", logprobs), text, finish_reason, weight_version)


def reward_row(reward: Reward) -> tuple[Any, ...]:
    """The columns of `completions` from `total` to `unscored`."""
    if isinstance(reward, Scored):
        return reward.total, struct.pack("<d", reward.total), json.dumps(dict(reward.components)), None
    return None, None, None, reward.reason.encode("utf-8", "backslashreplace").decode()


def read_reward(total_bits: bytes, components: str) -> Scored:
    """What `reward_row` stored for a Scored."""
    return Scored(struct.unpack("<d", total_bits)[0], json.loads(components))
