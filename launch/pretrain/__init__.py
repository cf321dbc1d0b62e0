"""Makes the small base model that the package bundles: verse from a grammar, a tokenizer, a short pre-training.

`python -m launch.pretrain --output DIR` does it all from a seed. This package reads `rlhaiku/assets` but does not
import `rlhaiku`: it runs wherever torch, transformers and tokenizers are installed, with nothing else.
"""
