"""A run's settings as slime's flags, and slime's own parser with nothing overlooked.

slime reads `sys.argv` with three parsers (its own on top of Megatron's, SGLang's, a small one before both), each of
which passes over flags it does not know. A misspelt flag would train with a default, so `parse_flags` checks that every
flag was known to one of them and that its value arrived.
"""

import argparse
import difflib
import math
import os
import sys
import traceback
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from actors.trainers.hf_shape import Flags, shape_flags
from rlhaiku.config import AlgorithmConfig, RunConfig, TrainerConfig
from rlhaiku.errors import BadInput


@dataclass(frozen=True, slots=True)
class SlimeRun:
    """What a start-up decides that is not in the RunConfig."""

    save: Path
    """Where Megatron's checkpoints go."""
    save_hf: str
    """Where each is exported to; `{rollout_id}` becomes the train step."""
    num_trainer_gpus: int
    num_engines: int
    gpus_per_engine: int = 1
    tensor_parallel: int = 1
    """Trainer GPUs that share one copy of the model."""
    has_transformer_engine: bool = True
    """Without it: Megatron's local layers and the packed attention of `megatron_spec.py`."""
    engine_memory: float = 0.4
    """Share of a card that is free when an engine starts and that it takes for weights and cache."""
    sglang_flags: tuple[str, ...] = ()
    """More for the engines, e.g. `--sglang-attention-backend`, `triton`."""


def slime_arguments(config: RunConfig, model_path: str | Path, run: SlimeRun) -> Namespace:
    """What slime's actors take as `args`; raises BadInput. Needs slime, Megatron and SGLang."""
    return parse_flags(slime_flags(config, model_path, run))


def slime_flags(config: RunConfig, model_path: str | Path, run: SlimeRun) -> list[str]:
    """The command line; `model_path` is a local Hugging Face directory. Raises BadInput."""
    trainer, algorithm = config.trainer, config.algorithm
    flags = (
        shape_flags(model_path)
        | _batch_flags(config, run)
        | _loss_flags(algorithm, config.rollout.temperature, model_path)
        | _optimizer_flags(trainer, config.num_steps)
        | _precision_flags(run.has_transformer_engine)
        | _place_flags(config, run)
        | {
            "hf-checkpoint": model_path,
            "load": model_path,  # a resumed run loads its checkpoint later, see Training.load
            "save": run.save,
            "save-interval": config.output.save_interval,  # Megatron asks for it; who says when is the coordinator
            "save-hf": run.save_hf,
            "start-rollout-id": 0,  # the coordinator says which step it is
            "seed": config.seed + 1,  # Megatron refuses 0
        }
    )
    return [*_command_line(flags), *run.sglang_flags]


def check_algorithm(algorithm: AlgorithmConfig) -> None:
    """Raises BadInput for what slime's loss does not have."""
    if algorithm.max_importance_ratio:
        # Its --use-tis is for ratios to the trainer's own logprobs, and beyond --eps-clip-c a token has no gradient.
        raise BadInput(
            "slime's loss bounds no ratio to the rollout's logprobs and keeps the token's gradient, as "
            "algorithm.max_importance_ratio asks",
            algorithm.max_importance_ratio,
            "Set it to 0, or use trainer.backend=torch.",
        )


def parse_flags(flags: Sequence[str]) -> Namespace:
    """What slime makes of a command line; raises BadInput about a flag nobody knows or whose value did not arrive."""
    from slime.utils.arguments import parse_args

    command_line = mock.patch.object(sys, "argv", [sys.argv[0], *flags])
    # Megatron looks here for what the trainers' processes must have.
    environment = mock.patch.dict(os.environ, CUDA_DEVICE_MAX_CONNECTIONS="1")
    with command_line, environment, _watched_parsers() as parsers:
        try:
            args: Namespace = parse_args()
        except (AssertionError, ValueError, OSError) as error:
            remedy = "The flags come from the run's settings and the model's config.json."
            raise BadInput("slime and Megatron must accept the settings", _said(error), remedy) from error
    actions = {flag: action for parser in parsers for flag, action in parser._option_string_actions.items()}
    given = _split(flags)
    for flag, _ in given:
        if flag not in actions:
            close = difflib.get_close_matches(flag, actions, n=1)
            remedy = f"Did you mean {close[0]}?" if close else "Compare actors/slime_pin.py with what is installed."
            raise BadInput("every flag must be known to slime, Megatron or SGLang", flag, remedy)
    for flag, values in given:
        _check_arrival(flag, actions[flag], values, args)
    return args


def _said(error: Exception) -> str:
    """The message of an error, or the line that raised it: many of Megatron's assertions say nothing."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return str(error) or f"{Path(where.filename).name}:{where.lineno}: {where.line}"


def _batch_flags(config: RunConfig, run: SlimeRun) -> Flags:
    rollout, steps = config.rollout, config.trainer.optimizer_steps
    samples = rollout.groups_per_step * rollout.group_size // steps
    ranks = run.num_trainer_gpus // run.tensor_parallel
    if run.num_trainer_gpus % run.tensor_parallel or samples % ranks:
        raise BadInput(
            f"the completions of an optimizer step ({samples}) must divide evenly among the trainer's copies",
            f"{run.num_trainer_gpus} GPUs, {run.tensor_parallel} for each copy",
            "Change rollout.groups_per_step or rollout.group_size.",
        )
    return {
        "rollout-batch-size": rollout.groups_per_step,
        "n-samples-per-prompt": rollout.group_size,
        "num-rollout": config.num_steps,
        "num-steps-per-rollout": steps,
        "use-dynamic-batch-size": True,
        "max-tokens-per-gpu": config.trainer.micro_batch_tokens,
    }


def _loss_flags(algorithm: AlgorithmConfig, temperature: float, model_path: str | Path) -> Flags:
    """The loss of `rlhaiku/losses.py`: ratios are to the rollout's logprobs, advantages come with the data."""
    check_algorithm(algorithm)
    kl: Flags = {"use-kl-loss": True, "kl-loss-coef": algorithm.kl_coef, "kl-loss-type": "k3", "ref-load": model_path}
    return {
        "advantage-estimator": "grpo",
        "use-rollout-logprobs": True,
        "rollout-temperature": temperature,
        "eps-clip": algorithm.clip_low,
        "eps-clip-high": algorithm.clip_high,
        "calculate-per-token-loss": algorithm.loss_aggregation == "token",
        "kl-coef": 0.0,  # slime's other KL term: of the reward
        "entropy-coef": 0.0,
    } | (kl if algorithm.kl_coef else {})


def _optimizer_flags(trainer: TrainerConfig, num_steps: int) -> Flags:
    """Warm-up and decay as `torch_trainer.learning_rate` has them; Megatron counts optimizer steps."""
    warmup, recompute = trainer.lr_warmup_steps, trainer.recompute
    return {
        "optimizer": "adam",
        "lr": trainer.lr,
        "lr-decay-style": trainer.lr_schedule,
        "min-lr": trainer.lr / 10,
        "lr-decay-iters": max(num_steps - 1, warmup + 1) * trainer.optimizer_steps,
        "lr-warmup-iters": warmup * trainer.optimizer_steps,
        "lr-warmup-init": trainer.lr / (warmup + 1) if warmup else 0.0,
        "override-opt-param-scheduler": True,  # a resumed run may have more steps
        "weight-decay": trainer.weight_decay,
        "adam-beta1": trainer.adam_beta1,
        "adam-beta2": trainer.adam_beta2,
        "adam-eps": trainer.adam_eps,
        "clip-grad": trainer.max_grad_norm,
        "recompute-granularity": "full" if recompute else None,
        "recompute-method": "uniform" if recompute else None,
        "recompute-num-layers": 1 if recompute else None,
    }


def _precision_flags(has_transformer_engine: bool) -> Flags:
    both: Flags = {
        "attention-dropout": 0.0,
        "hidden-dropout": 0.0,
        "accumulate-allreduce-grads-in-fp32": True,
        "attention-softmax-in-fp32": True,
    }
    if has_transformer_engine:
        return both | {"attention-backend": "flash"}
    unfused = ("gradient-accumulation", "masked-softmax", "rope", "bias-swiglu", "bias-dropout")
    return both | {
        "transformer-impl": "local",
        "spec": ("actors.trainers.megatron_spec", "get_spec"),
        "no-persist-layer-norm": True,
        **{f"no-{kernel}-fusion": True for kernel in unfused},
    }


def _place_flags(config: RunConfig, run: SlimeRun) -> Flags:
    """Where trainer and engines are: on the same cards and both resident, or each on their own."""
    cluster = config.cluster
    nodes = max(1, run.num_trainer_gpus // max(1, cluster.gpus_per_node))
    resident: Flags = {"colocate": True, "no-offload-train": True, "no-offload-rollout": True}
    return {
        "actor-num-nodes": nodes,
        "actor-num-gpus-per-node": run.num_trainer_gpus // nodes,
        "num-gpus-per-node": cluster.gpus_per_node,
        "rollout-num-gpus": run.num_engines * run.gpus_per_engine,
        "rollout-num-gpus-per-engine": run.gpus_per_engine,
        "tensor-model-parallel-size": run.tensor_parallel,
        "sequence-parallel": run.tensor_parallel > 1,
        "distributed-timeout-minutes": math.ceil(cluster.wait_timeout_s / 60),
        "sglang-mem-fraction-static": run.engine_memory,
    } | (resident if cluster.colocate else {})


def _command_line(flags: Flags) -> Iterator[str]:
    for name, value in flags.items():
        if value is None or value is False:
            continue
        yield f"--{name}"
        if value is not True:
            yield from map(str, value if isinstance(value, tuple) else (value,))


def _split(flags: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each flag with the values that follow it."""
    pairs: list[tuple[str, list[str]]] = []
    for token in flags:
        if token.startswith("--"):
            pairs.append((token, []))
        else:
            pairs[-1][1].append(token)
    return pairs


def _check_arrival(flag: str, action: Action, values: list[str], args: Namespace) -> None:
    expected: Any = [action.type(value) if callable(action.type) else value for value in values]
    if action.nargs == 0:
        has_negation = isinstance(action, argparse.BooleanOptionalAction)
        expected = not flag.startswith("--no-") if has_negation else action.const
    elif action.nargs is None:
        [expected] = expected
    arrived = getattr(args, action.dest, None)
    if arrived != expected:
        change = f"{flag} {' '.join(values)}: {action.dest} is {arrived!r}"
        raise BadInput("slime must take each value as it is given", change, "Its log says which rule changed it.")


@contextmanager
def _watched_parsers() -> Iterator[list[ArgumentParser]]:
    """Every parser that is used meanwhile; what they refuse is raised as ValueError instead of ending the process."""
    seen: list[ArgumentParser] = []
    parse = ArgumentParser.parse_known_args

    def watched(self: ArgumentParser, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  (as argparse has it)
        seen.append(self)
        return parse(self, *args, **kwargs)

    def raising(self: ArgumentParser, message: str) -> NoReturn:
        raise ValueError(message)

    with mock.patch.multiple(ArgumentParser, parse_known_args=watched, error=raising):
        yield seen
