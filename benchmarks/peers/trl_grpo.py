"""One side of `benchmarks.grpo_step`: TRL's GRPOTrainer on the same model, prompts and reward, in TRL's environment.

    TRL_PYTHON benchmarks/peers/trl_grpo.py SETTINGS.json      prints `RESULT ` and in JSON the seconds of each step

`rlhaiku` itself must be importable there for the reward (add the project to PYTHONPATH); nothing else of it is used.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

from rlhaiku.haiku.reward import HaikuReward
from rlhaiku.types import Prompt

SETTINGS = json.loads(Path(sys.argv[1]).read_text())
GPU = SETTINGS.get("gpu", False)
"""vLLM inside the trainer's process, as TRL recommends for one GPU; fp32 weights under bf16 autocast."""
HAS_LIGER = GPU and SETTINGS.get("liger", False)
"""Layers by the kernels that our side uses, which TRL can and by default does not."""
RESULT = "RESULT "
"""Starts the line with the result: libraries print where they like, after it too."""
PACKAGES = ("trl", "torch", "transformers", "accelerate", *["vllm"] * GPU, *["liger-kernel"] * HAS_LIGER)
SAVE_INTERVAL = SETTINGS.get("save_interval", 0)
REWARD = HaikuReward(SETTINGS["topic_weight"])


def haiku(completions: list[str], topic: list[str], text: list[str], **_: object) -> list[float]:
    """The reward both sides use."""
    return [REWARD(Prompt("", t, p, ()), c).total for c, t, p in zip(completions, topic, text, strict=True)]


class Clock(TrainerCallback):
    """Seconds from one optimizer step's end to the next: generation, scoring and training; saving is not counted."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.seconds: list[float] = []
        self.last = time.perf_counter()
        self.tokenizer = tokenizer

    def on_step_end(self, *_: object, model: PreTrainedModel, **__: object) -> None:
        """A step is done; every `save_interval` of them the model is kept as `step-NNNNNN`."""
        self.seconds.append(time.perf_counter() - self.last)
        if SAVE_INTERVAL and len(self.seconds) % SAVE_INTERVAL == 0:
            directory = Path(SETTINGS["output_dir"]) / f"step-{len(self.seconds):06d}"
            model.save_pretrained(directory)
            self.tokenizer.save_pretrained(directory)
        self.last = time.perf_counter()


def timed_syncs(trainer: GRPOTrainer) -> list[float]:
    """Seconds of every copy of the weights into vLLM, filled while the trainer runs."""
    seconds: list[float] = []
    if not GPU:
        return seconds
    generation, sync = trainer.vllm_generation, trainer.vllm_generation.sync_weights

    def timed() -> None:
        torch.cuda.synchronize()
        began = time.perf_counter()
        sync()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)

    generation.sync_weights = timed
    return seconds


def main() -> None:
    """Trains for the given number of steps."""
    torch.set_num_threads(SETTINGS["threads"])
    rows = SETTINGS["prompts"]
    tokenizer = AutoTokenizer.from_pretrained(SETTINGS["model"], padding_side="left")
    clock = Clock(tokenizer)
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(SETTINGS["model"], dtype=torch.float32),
        processing_class=tokenizer,
        reward_funcs=[haiku],
        train_dataset=Dataset.from_list([{"prompt": r["text"], "topic": r["topic"], "text": r["text"]} for r in rows]),
        callbacks=[clock],
        args=GRPOConfig(
            output_dir=SETTINGS["output_dir"],
            use_cpu=not GPU,
            bf16=GPU,
            use_vllm=GPU,
            vllm_mode="colocate",
            vllm_gpu_memory_utilization=0.3,
            vllm_max_model_length=1024,
            vllm_importance_sampling_correction=False,  # it would cost TRL a forward pass
            per_device_train_batch_size=SETTINGS["groups"] * SETTINGS["group_size"],
            gradient_accumulation_steps=1,
            num_generations=SETTINGS["group_size"],
            max_completion_length=SETTINGS["max_tokens"],
            max_steps=SETTINGS["steps"],
            learning_rate=SETTINGS["lr"],
            lr_scheduler_type="constant",
            weight_decay=SETTINGS["weight_decay"],
            adam_beta1=SETTINGS["adam_beta1"],
            adam_beta2=SETTINGS["adam_beta2"],
            beta=0.0,
            epsilon=0.2,
            epsilon_high=0.28,
            temperature=1.0,
            loss_type="dapo",  # mean over all tokens of the whole batch, as ours
            mask_truncated_completions=False,
            gradient_checkpointing=False,
            use_liger_kernel=HAS_LIGER,
            num_iterations=1,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            seed=SETTINGS["seed"],
        ),
    )
    syncs = timed_syncs(trainer)
    clock.last = time.perf_counter()
    trainer.train()
    history = trainer.state.log_history
    print("\n" + RESULT + json.dumps({
        "seconds": clock.seconds,
        "sync": syncs,
        "packages": {name: version(name) for name in PACKAGES},
        "reward": [row["reward"] for row in history if "reward" in row],
        "length": [row["completions/mean_length"] for row in history if "completions/mean_length" in row],
    }), flush=True)
    os._exit(0)  # vLLM's threads and torch's groups may hang, or crash, in an orderly end


if __name__ == "__main__":
    main()
