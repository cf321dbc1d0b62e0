"""What a run asks Modal for; read from the environment here and in the containers, which must come to the same."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from actors.slime_pin import SLIME_IMAGE
from launch.paths import Paths
from rlhaiku.errors import BadInput

PINS = (
    *("aiohttp==3.14.5", "jinja2==3.1.6", "matplotlib==3.11.2", "pydantic==2.14.3"),
    *("liger-kernel==0.8.5", "rich==15.0.0", "typer==0.29.2"),
)
"""What rlhaiku needs beyond the image; its torch, transformers and Ray are left alone."""
DAY_S = 24 * 3600
"""Modal's longest timeout; it is checked by nobody before the run."""
STOP_SHARE = 0.98
"""Of the timeout: a run saves and ends by itself, and a retry goes on with a fresh timeout."""
MAX_RETRIES = 10
MAX_NODE_GPUS = 8

IMAGE_PYTHON = "3.12"
"""Of `SLIME_IMAGE`."""

LOCAL_SECRETS = (
    *("HF_TOKEN", "LLM_JUDGE_URL", "LLM_JUDGE_MODEL", "LLM_JUDGE_API_KEY", "LLM_JUDGE_TIMEOUT"),
    *("LLM_JUDGE_MODAL_KEY", "LLM_JUDGE_MODAL_SECRET", "RAY_AUTH_TOKEN", "WANDB_API_KEY", "WANDB_MODE"),
)
"""Variables of the environment a run is started in that its containers get, as a Modal secret."""


@dataclass(frozen=True, slots=True)
class Resources:
    """The machines of a run."""

    gpu: str = "H100:8"
    """Type and count of each node's GPUs; empty for none."""
    nodes: int = 1
    timeout_s: int = DAY_S
    """Of one attempt."""
    image: str = SLIME_IMAGE
    python: str = IMAGE_PYTHON
    """Of the image; code that travels by value must have been compiled by the same."""
    secrets: tuple[str, ...] = ()
    """Modal secrets beside `LOCAL_SECRETS`, each NAME or NAME=KEY+KEY with the variables that it must have."""
    has_dashboard: bool = False
    """Forward Ray's dashboard; it then asks for RAY_AUTH_TOKEN."""
    paths: Paths = field(default_factory=Paths)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Resources":
        """RLHAIKU_GPU, _NODES, _TIMEOUT_S, _IMAGE, _PYTHON, _SECRETS (comma-separated) and _DASHBOARD=1.

        Each has a default.
        """
        env = os.environ if environment is None else environment
        default = cls()
        return cls(
            gpu=env.get("RLHAIKU_GPU", default.gpu),
            nodes=_number(env, "RLHAIKU_NODES", default.nodes),
            timeout_s=_number(env, "RLHAIKU_TIMEOUT_S", default.timeout_s),
            image=env.get("RLHAIKU_IMAGE", default.image),
            python=env.get("RLHAIKU_PYTHON", default.python),
            secrets=tuple(name for name in env.get("RLHAIKU_SECRETS", "").split(",") if name),
            has_dashboard=env.get("RLHAIKU_DASHBOARD", "") == "1",
            paths=Paths.from_environment(),
        )

    @property
    def environment(self) -> dict[str, str]:
        """What makes the containers agree."""
        return self.paths.environment | {
            "RLHAIKU_GPU": self.gpu,
            "RLHAIKU_NODES": str(self.nodes),
            "RLHAIKU_TIMEOUT_S": str(self.timeout_s),
            "RLHAIKU_IMAGE": self.image,
            "RLHAIKU_PYTHON": self.python,
            "RLHAIKU_SECRETS": ",".join(self.secrets),
            "RLHAIKU_DASHBOARD": str(int(self.has_dashboard)),
        }

    @property
    def gpus_per_node(self) -> int:
        """The count in `gpu`; raises BadInput if that is not TYPE or TYPE:COUNT with at most 8."""
        if not self.gpu:
            return 0
        parts = re.fullmatch(r"([A-Z0-9-]+!?)(?::(\d+))?", self.gpu)
        count = int(parts[2] or 1) if parts else 0
        if not 1 <= count <= MAX_NODE_GPUS:
            raise BadInput(f"a node has 1 to {MAX_NODE_GPUS} GPUs, written TYPE:COUNT", self.gpu, "For example H100:8.")
        return count

    @property
    def is_clustered(self) -> bool:
        """Whether Modal is asked for a cluster: it gives one only of whole GPU hosts."""
        return self.nodes > 1 or self.gpu.endswith(f":{MAX_NODE_GPUS}")

    @property
    def named_secrets(self) -> dict[str, list[str]]:
        """By the name of a Modal secret: the variables that it was said to have."""
        pairs = (secret.partition("=") for secret in self.secrets)
        return {name: [key for key in keys.split("+") if key] for name, _, keys in pairs}

    @property
    def stop_after_s(self) -> float:
        """When a run saves and ends by itself."""
        return STOP_SHARE * self.timeout_s


def is_provided(variable: str, resources: Resources, environment: Mapping[str, str] | None = None) -> bool:
    """Whether the containers will have a variable: it is set here, or a Modal secret was said to have it."""
    env = os.environ if environment is None else environment
    return bool(env.get(variable)) or any(variable in keys for keys in resources.named_secrets.values())


def local_secrets(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of `LOCAL_SECRETS` that are set."""
    env = os.environ if environment is None else environment
    return {name: env[name] for name in LOCAL_SECRETS if env.get(name)}


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise BadInput(f"{name} is a whole number above 0", text, f"Leave it out for {default}.")
    return int(text)
