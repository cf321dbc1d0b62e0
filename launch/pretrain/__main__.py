"""`python -m launch.pretrain`: makes the bundled base model from a seed."""

import argparse
import json
import os
import time
from pathlib import Path
from random import Random

from launch.pretrain.corpus import corpus_statistics, write_documents
from launch.pretrain.data import CHUNK, generate_arrays
from launch.pretrain.model import Training, build_model, save_model, train
from launch.pretrain.sample import sample_haiku, sample_statistics
from launch.pretrain.tokenizer import PAD, TURN_END, VOCABULARY, save_tokenizer, train_tokenizer
from launch.pretrain.verse import Verse

# The chunk of the tokenizer's documents; far from the chunks that the model is trained on.
_TOKENIZER_CHUNK = 1_000_000
_SHOWN_TOPICS = 8
_MEASURED_TOPICS = 60
_SAMPLES = 8


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m launch.pretrain", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="directory for the model and the tokenizer")
    parser.add_argument("--steps", type=int, default=8_000)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--documents", type=int, default=2_000_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


class _Log:
    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self, message: str) -> None:
        print(f"[{time.monotonic() - self._started:7.1f} s] {message}", flush=True)


def main() -> None:
    """Writes verse, trains the tokenizer and the model, and reports what it made in `pretrain.json`."""
    arguments = _arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    log = _Log()

    verse = Verse()
    # At most what the tokenizer and the statistics need, however large the corpus is.
    documents = write_documents(verse, arguments.seed, _TOKENIZER_CHUNK, min(arguments.documents, 5 * CHUNK))
    statistics = corpus_statistics(documents)
    log(f"corpus statistics {json.dumps(statistics.as_dict())}")
    tokenizer = save_tokenizer(train_tokenizer(documents), arguments.output)
    log(f"trained the tokenizer, {len(tokenizer)} tokens")

    tokenizer_file = arguments.output / "tokenizer.json"
    arrays = generate_arrays(tokenizer_file, arguments.seed, arguments.documents, arguments.workers)
    documents_kept, held_out = arrays.split(min(CHUNK, arguments.documents // 10))
    log(f"encoded {len(arrays)} documents of at most {arrays.tokens.shape[1]} tokens")

    pad, eos = (tokenizer.convert_tokens_to_ids(token) for token in (PAD, TURN_END))
    model = build_model(VOCABULARY, pad, eos, arguments.seed)
    training = Training(arguments.steps, arguments.batch_size, arguments.device, arguments.seed, arguments.rate)
    losses = train(model, documents_kept, held_out, training)
    log(f"final loss {losses.train:.4f}, on held-out documents {losses.validation:.4f}")
    save_model(model, arguments.output)

    topics = Random(arguments.seed).sample(sorted(verse.topics), _MEASURED_TOPICS)
    poems = sample_haiku(model, tokenizer, topics, _SAMPLES, arguments.seed)
    measured = sample_statistics(topics, poems)
    shown = {topic: texts[0] for topic, texts in zip(topics[:_SHOWN_TOPICS], poems, strict=False)}
    for topic, text in shown.items():
        log(f"haiku about {topic}\n{text}")
    log(f"samples {json.dumps(measured.as_dict())}")
    report = {
        "arguments": {name: str(value) for name, value in vars(arguments).items() if name != "output"},
        "corpus": statistics.as_dict(),
        "loss": {"train": losses.train, "validation": losses.validation},
        "samples": measured.as_dict(),
        "examples": shown,
    }
    (arguments.output / "pretrain.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
