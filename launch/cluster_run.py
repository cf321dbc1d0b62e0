"""What `launch/cluster.py` does around a run, as far as it needs no Modal: settings, checks, and what comes back."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.by_value import from_value
from launch.checks import check_sinks, data_directory, resolve_model
from launch.plan import make_plan, refuse
from launch.resources import Resources
from launch.rewards import reward_spec
from launch.run_volume import KeptRun, complete_checkpoints
from rlhaiku.config import RunConfig, load_config, read_config, with_overrides
from rlhaiku.errors import BadInput, CrashLoop, RlhaikuError, WeightMismatch

if TYPE_CHECKING:
    from launch.local import Hooks, RunResult

FINAL = (BadInput, CrashLoop, WeightMismatch)
"""What another attempt at the same call would only meet again, on as many GPUs."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a call of `train` asks for; its arguments."""

    preset: str
    settings: str
    run: str
    resume: bool
    own: str
    source: str
    split: str

    def config(self, earlier: Path | None, resources: Resources) -> RunConfig:
        """The settings of the run: as the volume has them where it goes on, else of the preset; `settings` win.

        A new run takes the prompts that `prepare_dataset` wrote, unless `settings` name others. Raises BadInput for
        whatever a launch would refuse.
        """
        overrides = shlex.split(self.settings)
        if earlier and complete_checkpoints(earlier):
            return checked(with_overrides(read_config(earlier / "config.toml"), overrides), resources)
        data = resources.paths.data_set(self.source, self.split)
        return checked(load_config(self.preset, [f"data.path={data}", *overrides]), resources)

    def things(self, config: RunConfig) -> dict[str, Any]:
        """The reward and rubric that came by value, after a look at all that a run needs; Ray need not be there yet.

        Raises BadInput.
        """
        things = from_value(self.own)
        resolve_model(config.model.path)
        data_directory(config.data.path)
        check_sinks(config)
        reward_spec(config, things.get("reward"), things.get("rubric"), None)
        return things

    def resume_with(self, run: str) -> str:
        """The command that goes on with the run."""
        return f"modal run launch/cluster.py --stage train --preset {self.preset} --run {run} --resume"


def checked(config: RunConfig, resources: Resources) -> RunConfig:
    """The same, unless a plan speaks against it; raises BadInput."""
    refuse(make_plan(config, resources))
    return config


def run_kept(config: RunConfig, kept: KeptRun, things: Mapping[str, Any], hooks: "Hooks") -> "RunResult":
    """Runs on the local disk, from a checkpoint if there is one, and puts what came of it on the volume."""
    from launch.local import run  # loads Ray and torch

    result = run(config, output_dir=kept.local, resume=kept.has_checkpoint, hooks=hooks, **things)
    kept.keep()
    return result


def as_value(error: RlhaikuError) -> dict[str, Any]:
    """An error to be returned instead of raised: what is raised is tried again, whatever it is."""
    print(f"error {error}", flush=True)
    return {"error": error}


def summary_of(value: Mapping[str, Any]) -> dict[str, Any]:
    """What `train` returned, or raised here if it was an error."""
    if "error" in value:
        raise value["error"]
    return dict(value)
