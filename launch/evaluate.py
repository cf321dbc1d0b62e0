"""Scores a model against its base on the held-out prompts, with the engines and the code of a training run."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from actors.reward_worker import RewardSpec
from launch.checks import check_placement
from launch.local import load_prompts, start_for
from launch.ray_runtime import local_ray
from rlhaiku.checkpoints import CheckpointStore, RunState
from rlhaiku.config import RunConfig, with_overrides
from rlhaiku.coordinator import Coordinator, Surroundings
from rlhaiku.evaluation import Answer, Comparison, answers_of, compare
from rlhaiku.haiku.reward import HaikuReward
from rlhaiku.metrics import StepReport
from rlhaiku.prompts import PromptOrder
from rlhaiku.types import ScoredGroup


class _Keep:
    """A Reporter that keeps one evaluation."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []

    def step(self, report: StepReport) -> None:
        """An evaluation trains nothing."""

    def evaluation(self, state: RunState, groups: Sequence[ScoredGroup]) -> None:
        """Keeps the answers."""
        self.answers = answers_of(groups)


def evaluate_pair(config: RunConfig, base: str, trained: str) -> Comparison:
    """Both models answer the same held-out prompts with the same random draws.

    `base`, `trained`: Hugging Face directories, hub ids, or `bundled`. Raises BadInput, RunFailed.
    """
    configs = [with_overrides(config, [f"model.path={model}"]) for model in (base, trained)]
    placement = check_placement(config)
    prompts = [load_prompts(each) for each in configs]
    answers: list[list[Answer]] = []
    with local_ray(placement.total_cpus, placement.num_gpus), TemporaryDirectory() as unused:
        for each, (train_prompts, eval_prompts) in zip(configs, prompts, strict=True):
            keep = _Keep()
            store = CheckpointStore(Path(unused), each.output.keep_last)
            around = Surroundings(PromptOrder(train_prompts, each.seed), eval_prompts, store, (keep,))
            with start_for(each, placement, RewardSpec(((HaikuReward(), 1.0),))) as cast:
                coordinator = Coordinator(each, cast.roles, around)
                cast.roles.weight_sync.publish(0)
                coordinator.evaluate()
            answers.append(keep.answers)
    return compare(answers[0], answers[1])
