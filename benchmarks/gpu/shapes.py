"""Random weights in the shapes of real models: for speed only."""

import json
from pathlib import Path

from benchmarks.gpu.roofline import DEVICE
from benchmarks.models import TOKENIZER_FILES, bundled

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


SMOKE = "0.6B" if DEVICE == "cuda" else "tiny"
"""The size for `--smoke`; without a card it only shows that the code runs."""


def qwen3(directory: Path, size: str, *, weights: bool) -> Path:
    """Writes a folder of Qwen3's shape with the bundled tokenizer, whose ids every model here has."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**SHARED | QWEN3[size], dtype="bfloat16")
    if weights:
        torch.manual_seed(0)
        with torch.device(DEVICE):
            model = Qwen3ForCausalLM(config).bfloat16()
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
