"""A vLLM OpenAI server as a Modal app: what `launch/serve.py` and `launch/judge.py` have in common.

Containers import this, and their image has no more than vLLM: standard library, Modal and `launch.paths` only.
"""

import os
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import modal

from launch.paths import Paths

IMAGE = (
    "nvidia/cuda:12.8.1-devel-ubuntu22.04@sha256:6617a625f4090c76c545a0e7d63f2e441718ef9af7f4efe7dd1242a29e289fd7"
)
"""For amd64; the tag is for people, the digest is what is pulled."""
MAX_GPUS = 8
"""Of one host: a web server cannot be clustered."""
IDLE_S = 15 * 60
START_S = 15 * 60
LONGEST_REQUEST_S = 10 * 60
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True, slots=True)
class Server:
    """One server's choices, from environment variables at deploy time."""

    prefix: str
    """Of its variables, e.g. `RLHAIKU_JUDGE_`."""
    model: str
    """Hugging Face id, or a directory in the container; MODEL."""
    served_name: str
    """What requests call the model; SERVED_NAME."""
    gpu: str
    """GPU."""
    gpu_count: int
    """GPU_COUNT."""
    is_eager: bool
    """Without CUDA graphs: starts sooner, answers more slowly; EAGER=1."""
    is_public: bool
    """Answer anybody who knows the URL, instead of having Modal's proxy ask for a token; PUBLIC=1."""
    extra: tuple[str, ...]
    """Further arguments of `vllm serve`; VLLM_ARGS, as a shell would read it."""
    port: int
    """In the container; PORT."""
    concurrency: int
    """Requests that one container takes at once."""
    secrets: tuple[str, ...] = ()
    """Names of Modal secrets beside an HF_TOKEN that is set at deploy time; SECRETS, comma-separated."""

    @classmethod
    def from_environment(cls, prefix: str, model: str, served_name: str, concurrency: int) -> "Server":
        """The variables with this prefix, `model` and `served_name` being the defaults; raises ValueError."""

        def chosen(name: str, default: str) -> str:
            return os.environ.get(prefix + name, default)

        count, name = chosen("GPU_COUNT", "1"), chosen("MODEL", model)
        if not count.isdecimal() or not 1 <= int(count) <= MAX_GPUS:
            raise ValueError(f"{prefix}GPU_COUNT is 1 to {MAX_GPUS}: a web server cannot be clustered; got {count!r}")
        if name and not name.startswith("/") and not HUB_ID.fullmatch(name):
            raise ValueError(f"{prefix}MODEL is a hub id like owner/name, or a container's path from /; got {name!r}")
        return cls(
            prefix, name, chosen("SERVED_NAME", served_name), chosen("GPU", "H100"), int(count),
            chosen("EAGER", "") == "1", chosen("PUBLIC", "") == "1", tuple(shlex.split(chosen("VLLM_ARGS", ""))),
            int(chosen("PORT", "8000")), concurrency, tuple(filter(None, chosen("SECRETS", "").split(","))),
        )  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        """The container imports the app's file too, and must come to the same choices."""
        chosen = {
            "MODEL": self.model, "SERVED_NAME": self.served_name, "GPU": self.gpu, "GPU_COUNT": str(self.gpu_count),
            "EAGER": str(int(self.is_eager)), "PUBLIC": str(int(self.is_public)), "VLLM_ARGS": shlex.join(self.extra),
            "PORT": str(self.port), "SECRETS": ",".join(self.secrets),
        }  # fmt: skip
        return {self.prefix + name: value for name, value in chosen.items()}

    def _secrets(self) -> list[modal.Secret]:
        token = {"HF_TOKEN": value} if (value := os.environ.get("HF_TOKEN")) else {}
        return [modal.Secret.from_dict(dict(token)), *map(modal.Secret.from_name, self.secrets)]

    def argv(self, model: str, *arguments: str) -> list[str]:
        """The server's command line: a list, no shell. Bound to all interfaces, since Modal's proxy is outside."""
        argv = ["vllm", "serve", model, "--served-model-name", self.served_name]
        argv += ["--host", "0.0.0.0", "--port", str(self.port), "--tensor-parallel-size", str(self.gpu_count)]
        argv += ["--max-num-seqs", str(self.concurrency), "--uvicorn-log-level", "warning", *arguments, *self.extra]
        return [*argv, "--enforce-eager"] if self.is_eager else argv

    def image(self, paths: Paths, **environment: str) -> modal.Image:
        """vLLM on CUDA, pinned, and this project's `launch`."""
        settings = {"HF_XET_HIGH_PERFORMANCE": "1", "VLLM_NO_USAGE_STATS": "1"}
        return (
            modal.Image.from_registry(IMAGE, add_python="3.12")
            .entrypoint([])
            .uv_pip_install("vllm==0.13.0", "huggingface-hub==0.36.0", uv_version="0.9.7")
            .env(settings | paths.environment | self.environment | environment)
            .add_local_python_source("launch")
        )

    def function(
        self, app: modal.App, paths: Paths, volumes: Iterable[str]
    ) -> Callable[[Callable[[], None]], modal.Function]:
        """Decorates the body that starts the server; Modal sends requests until it has been idle for a while."""
        decorators = [
            modal.web_server(self.port, startup_timeout=START_S, requires_proxy_auth=not self.is_public),
            modal.concurrent(max_inputs=self.concurrency),
            app.function(
                gpu=f"{self.gpu}:{self.gpu_count}",
                volumes={
                    str(paths.volumes[name]): modal.Volume.from_name(name, create_if_missing=True) for name in volumes
                },
                secrets=self._secrets(),
                timeout=LONGEST_REQUEST_S,
                startup_timeout=START_S,
                scaledown_window=IDLE_S,
            ),
        ]

        def decorate(body: Callable[[], None]) -> modal.Function:
            made = body
            for decorator in decorators:
                made = decorator(made)
            return made

        return decorate
