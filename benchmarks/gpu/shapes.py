"""Random weights in the shapes of real models: for speed only.

    python -m benchmarks.gpu.shapes DIRECTORY SIZE      one that speaks, for runs of a preset
"""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.roofline import DEVICE
from benchmarks.models import TOKENIZER_FILES, VOCABULARY, bundled

QWEN3 = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 16,
             "vocab_size": 4096, "eos_token_id": 2, "pad_token_id": 1},
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
}
SHARED = {
    "vocab_size": 151_936, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
    "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6, "eos_token_id": 151_645, "pad_token_id": 151_643,
}


CONSTANT, KNOWN, LINE_BREAK = 0.2, 5.0, 5.6
"""A random model that speaks: in each element of its embedding; the logit of tokens that may be drawn, and how much
higher that of a line break is, for an eighth of all tokens. The other tokens' logits are as far below 0."""
SMOKE = "0.6B" if DEVICE == "cuda" else "tiny"
"""The size for `--smoke`; without a card it only shows that the code runs."""


def qwen3(directory: Path, size: str, *, weights: bool, speaks: bool = False) -> Path:
    """Writes a folder of Qwen3's shape with the bundled tokenizer, whose ids every model here has.

    `speaks`: random weights that draw lines of syllables, so that some poems of a group earn more than others.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**SHARED | QWEN3[size], dtype="bfloat16")
    if weights:
        torch.manual_seed(0)
        with torch.device(DEVICE):
            model = Qwen3ForCausalLM(config).bfloat16()
        if speaks:
            make_speak(model)
        model.save_pretrained(directory)
        del model
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
    else:
        config.architectures = ["Qwen3ForCausalLM"]
        config.save_pretrained(directory)
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": config.eos_token_id}))
    for name in TOKENIZER_FILES:
        if (bundled() / name).exists():
            (directory / name).write_bytes((bundled() / name).read_bytes())
    return directory


def make_speak(model: Any) -> None:  # noqa: ANN401  (a model of transformers with one matrix for both embeddings)
    """Lets a random model draw only ids that the bundled tokenizer knows, with a line break now and then."""
    import torch
    from tokenizers import Tokenizer

    (line_break,) = Tokenizer.from_file(str(bundled() / "tokenizer.json")).encode("\n").ids
    with torch.no_grad():
        for layer in model.model.layers:  # or their sum is alike everywhere, and a few tokens are drawn again and again
            layer.self_attn.o_proj.weight *= 0.02
            layer.mlp.down_proj.weight *= 0.02
        rows = model.get_input_embeddings().weight
        rows[:VOCABULARY] += CONSTANT  # what is left of the hidden states after the last norm, and so in every logit
        rows[VOCABULARY:] = -CONSTANT
        rows[line_break] += LINE_BREAK / KNOWN * CONSTANT
        model.model.norm.weight *= KNOWN / (CONSTANT * rows.shape[1])


if __name__ == "__main__":
    print(qwen3(Path(sys.argv[1]), sys.argv[2], weights=True, speaks=True))
