"""What the `config.json` of published Qwen3 models says about their shape, as far as the Megatron trainer reads it."""

COMMON = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 128, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "vocab_size": 151936, "attention_bias": False,
    "tie_word_embeddings": True, "hidden_act": "silu", "use_sliding_window": False,
}  # fmt: skip
QWEN3 = {
    "qwen3-0.6B": COMMON | {
        "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_hidden_layers": 28,
    },
    "qwen3-4B": COMMON | {
        "hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32, "num_hidden_layers": 36,
    },
    "qwen3-4B-Instruct-2507": COMMON | {
        "hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32, "num_hidden_layers": 36,
        "rope_theta": 5000000,
    },
    "qwen3-8B": COMMON | {
        "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "num_hidden_layers": 36,
        "tie_word_embeddings": False,
    },
}  # fmt: skip
"""By the name of slime's own script for the model."""
