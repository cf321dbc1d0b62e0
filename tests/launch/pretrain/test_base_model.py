"""The model learns, loses nothing when saved, and is small enough to bundle."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from launch.pretrain.data import TokenArrays
from launch.pretrain.model import Training, _batch, _shuffled_rows, build_model, save_model, train
from launch.pretrain.sample import meter_of, sample_statistics
from launch.pretrain.tokenizer import VOCABULARY

TRAINING = Training(steps=12, batch_size=4, device="cpu", seed=0)


def _arrays() -> TokenArrays:
    tokens = np.tile(np.array([5, 6, 7, 8, 9, 2, 0], dtype=np.int16), (8, 1))
    return TokenArrays(tokens, np.full(8, 3, dtype=np.int32), np.full(8, 6, dtype=np.int32))


def test_only_the_answer_is_labelled() -> None:
    tokens, labels = _batch(_arrays(), np.array([0]), "cpu")
    assert tokens.tolist() == [[5, 6, 7, 8, 9, 2]]
    assert labels.tolist() == [[-100, -100, 8, 9, 2, -100]]


def test_training_lowers_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    model = build_model(VOCABULARY, pad=0, eos=2, seed=0)
    losses = train(model, _arrays(), _arrays(), TRAINING)
    assert losses.validation < losses.train < np.log(VOCABULARY)
    assert "step 12/12" in capsys.readouterr().out


def test_the_saved_model_is_small_and_the_same(tmp_path: Path) -> None:
    model = build_model(VOCABULARY, pad=0, eos=2, seed=0)
    save_model(model, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size <= 8_000_000
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert loaded.generation_config.eos_token_id == 2
    same = zip(model.parameters(), loaded.parameters(), strict=True)
    assert all(torch.equal(mine, other.float()) for mine, other in same)


def test_the_rate_rises_and_falls() -> None:
    training = Training(steps=1000, batch_size=1, device="cpu", seed=0, rate=1.0, warmup=100)
    assert training.rate_at(0) == pytest.approx(0.01)
    assert training.rate_at(99) == pytest.approx(1.0)
    assert training.rate_at(550) == pytest.approx(0.525)
    assert training.rate_at(999) == pytest.approx(0.05, abs=1e-4)


def test_rows_come_once_an_epoch() -> None:
    rows = _shuffled_rows(documents=10, size=5, seed=1)
    first, second = [np.concatenate([next(rows), next(rows)]).tolist() for _ in range(2)]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_arrays_split_at_the_end() -> None:
    kept, held_out = _arrays().split(3)
    assert (len(kept), len(held_out)) == (5, 3)


def test_syllables_of_known_and_invented_words() -> None:
    assert meter_of("an old owl -\n\nwinter blorbing.") == (3, 4)


def test_sample_statistics() -> None:
    haiku = "the owl in the barn\nthe old owl in the old barn\nthe owl in the barn"
    statistics = sample_statistics(["owl", "cat"], [[haiku], ["a blorb"]])
    expected = SimpleNamespace(samples=2, structure_mean=0.5, strict_share=0.5, topic_mention_share=0.5)
    assert {name: getattr(statistics, name) for name in vars(expected)} == vars(expected)
    assert statistics.known_word_share == pytest.approx(18 / 19)
