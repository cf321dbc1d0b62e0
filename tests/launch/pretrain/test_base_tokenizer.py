"""The tokenizer loses nothing, and its chat template is what the model was trained on."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from launch.pretrain.corpus import SYSTEM_PROMPT, write_documents
from launch.pretrain.data import encode_documents, generate_arrays, join_arrays
from launch.pretrain.tokenizer import VOCABULARY, render_prompt, save_tokenizer, train_tokenizer
from launch.pretrain.verse import Verse

DOCUMENTS = write_documents(Verse(), seed=0, chunk=0, count=3000)
RAW = train_tokenizer(DOCUMENTS)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(RAW, directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Any:
    return AutoTokenizer.from_pretrained(directory)


def _messages(request: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": request}]


def test_vocabulary(tokenizer: Any) -> None:
    assert len(tokenizer) == VOCABULARY
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert all(len(tokenizer.encode(token)) == 1 for token in ("<|im_start|>", "<think>", "</think>"))


def test_decode_restores_any_text(tokenizer: Any) -> None:
    @settings(max_examples=200, deadline=None)
    @given(st.text())
    def restores(text: str) -> None:
        assert tokenizer.decode(tokenizer.encode(text)) == text

    restores()


def test_a_newline_never_merges_with_a_word(tokenizer: Any) -> None:
    newline = tokenizer.encode("\n")
    assert len(newline) == 1
    assert tokenizer.encode("the moon\nthe sun") == [
        *tokenizer.encode("the moon"), *newline, *tokenizer.encode("the sun"),
    ]  # fmt: skip
    assert len(tokenizer.encode("the")) == 1


def test_the_prompt_is_what_the_chat_template_renders(tokenizer: Any) -> None:
    request = "Write me a haiku about otter."
    rendered = tokenizer.apply_chat_template(
        _messages(request), tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert rendered == render_prompt(request)


def test_thinking_leaves_the_answer_open(tokenizer: Any) -> None:
    def render(**options: bool) -> str:
        text = tokenizer.apply_chat_template(_messages("Hello."), tokenize=False, **options)
        assert isinstance(text, str)
        return text

    thinking = render(add_generation_prompt=True, enable_thinking=True)
    assert thinking == render(add_generation_prompt=True)
    assert thinking.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert render().endswith("Hello.<|im_end|>\n")


def test_documents_become_prompt_and_answer(tokenizer: Any) -> None:
    arrays = encode_documents(DOCUMENTS[:50], RAW)
    for document, row, start, end in zip(DOCUMENTS, arrays.tokens, arrays.prompts, arrays.ends, strict=False):
        assert tokenizer.decode(row[:start]) == render_prompt(document.request)
        assert tokenizer.decode(row[start:end]) == document.poem.text + "<|im_end|>"
        assert not row[end:].any()


def test_arrays_of_different_width_join() -> None:
    parts = [encode_documents([document], RAW) for document in DOCUMENTS[:4]]
    joined, whole = join_arrays(parts), encode_documents(DOCUMENTS[:4], RAW)
    assert (joined.tokens == whole.tokens).all()
    assert (joined.ends == whole.ends).all()


def test_the_arrays_do_not_depend_on_the_number_of_workers(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.pretrain.data.CHUNK", 100)
    alone = generate_arrays(directory / "tokenizer.json", seed=1, documents=250, workers=1)
    shared = generate_arrays(directory / "tokenizer.json", seed=1, documents=250, workers=2)
    assert alone.tokens.shape[0] == 250
    assert (alone.tokens == shared.tokens).all()


def test_a_document_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.pretrain.data.MAX_TOKENS", 40)
    with pytest.raises(ValueError, match="more than 40"):
        encode_documents(DOCUMENTS[:3], RAW)
