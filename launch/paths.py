"""Where things are in the containers: one object for training, evaluation, serving and the judge.

It needs the standard library only, since containers without rlhaiku's dependencies import it too.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT_VARIABLE = "RLHAIKU_VOLUMES"


@dataclass(frozen=True, slots=True)
class Paths:
    """Modal volumes and their mount paths, below one root."""

    root: Path = Path("/vol")

    @classmethod
    def from_environment(cls) -> "Paths":
        """The root that RLHAIKU_VOLUMES names; whoever starts a container passes it on with `environment`."""
        return cls(Path(os.environ.get(ROOT_VARIABLE, str(cls().root))))

    @property
    def hf_cache(self) -> Path:
        """Weights and data sets as Hugging Face's libraries keep them; `HF_HOME`."""
        return self.root / "huggingface"

    @property
    def vllm_cache(self) -> Path:
        """What vLLM compiled; `VLLM_CACHE_ROOT`."""
        return self.root / "vllm"

    @property
    def data(self) -> Path:
        """One directory for each prepared data set."""
        return self.root / "data"

    @property
    def runs(self) -> Path:
        """One directory for each run: its settings, metrics and checkpoints."""
        return self.root / "runs"

    @property
    def volumes(self) -> Mapping[str, Path]:
        """Mount path by the volume's name. The first two names are the tutorial's."""
        return {
            "huggingface-cache": self.hf_cache,
            "vllm-cache": self.vllm_cache,
            "rlhaiku-data": self.data,
            "rlhaiku-runs": self.runs,
        }

    @property
    def environment(self) -> dict[str, str]:
        """What a container must have in its environment to agree with all this."""
        return {
            ROOT_VARIABLE: str(self.root),
            "HF_HOME": str(self.hf_cache),
            "VLLM_CACHE_ROOT": str(self.vllm_cache),
        }

    def data_set(self, source: str, split: str) -> Path:
        """Where `prepare_dataset` puts a data set."""
        return self.data / f"{source.replace('/', '--')}-{split}"

    def newest_model(self, run: str = "") -> Path | None:
        """The Hugging Face directory of the newest complete checkpoint, of one run or of all; None without one."""
        complete = [
            state.parent / "hf"
            for state in self.runs.glob(f"{run or '*'}/checkpoints/step-*/coordinator.json")
            if (state.parent / "hf" / "config.json").is_file()
        ]
        return max(complete, key=lambda model: (_saved_at(model), model), default=None)


def _saved_at(model: Path) -> float:
    return (model.parent / "coordinator.json").stat().st_mtime
