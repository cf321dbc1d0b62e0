"""The tokenizer of the base model: byte-level BPE trained on the corpus, with Qwen3's chat markup."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from launch.pretrain.corpus import SYSTEM_PROMPT, Document

VOCABULARY = 3072
PAD = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
THINK_START = "<think>"
THINK_END = "</think>"
_SPECIAL = (PAD, TURN_START, TURN_END, THINK_START, THINK_END)
_MAX_LENGTH = 1024

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{%- endif %}"
)


def render_prompt(request: str) -> str:
    """A request as the chat template renders it with a generation prompt and thinking disabled."""
    turns = (("system", SYSTEM_PROMPT), ("user", request))
    chat = "".join(f"{TURN_START}{role}\n{content}{TURN_END}\n" for role, content in turns)
    return f"{chat}{TURN_START}assistant\n{THINK_START}\n\n{THINK_END}\n\n"


def render_answer(text: str) -> str:
    """A poem as the model is to answer: the text and the end of the turn."""
    return text + TURN_END


def train_tokenizer(documents: Iterable[Document], vocabulary: int = VOCABULARY) -> Tokenizer:
    """Trains the byte-level BPE on the requests and the poems of `documents`."""
    tokenizer = Tokenizer(models.BPE())
    # A newline is a token of its own, so that it never merges with a word and the first word of a line stays whole.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in _SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (text for document in documents for text in (SYSTEM_PROMPT, document.request, document.poem.text))
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> PreTrainedTokenizerFast:
    """Writes `tokenizer.json` and `tokenizer_config.json` (with the chat template) and returns what they load as."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=TURN_END,
        padding_side="left",
        model_max_length=_MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory, save_jinja_files=False)
    # transformers 5 writes a class name that version 4, and the servers built on it, cannot load.
    config_file = directory / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return fast
