"""The trained model as an OpenAI server on Modal. `modal deploy launch/serve.py`

It serves the newest complete checkpoint of the volume that `launch/cluster.py` trained on, as `qwen3-4b-haiku`, and is
gone after a quarter of an hour without requests. Choices are environment variables at deploy time: RLHAIKU_SERVE_RUN
(another run than the newest), RLHAIKU_SERVE_MODEL (any Hugging Face id, for which the volume is not mounted, or a
directory of the volume), _SERVED_NAME, _GPU, _GPU_COUNT, _EAGER, _PUBLIC, _VLLM_ARGS and _SECRETS (names of Modal
secrets). HF_TOKEN goes along when it is set where you type this.

`rlhaiku evaluate --url URL` scores what is served.
"""

import os
import subprocess
from pathlib import Path

import modal

from launch.paths import Paths
from launch.vllm_app import Server

CONCURRENT_INPUTS = 32
PATHS = Paths.from_environment()
RUN = os.environ.get("RLHAIKU_SERVE_RUN", "")
SERVER = Server.from_environment("RLHAIKU_SERVE_", "", "qwen3-4b-haiku", CONCURRENT_INPUTS)
IS_TRAINED = not SERVER.model or SERVER.model.startswith("/")
"""Whether the model is on the volume; a Hugging Face id is not."""

app = modal.App("rlhaiku-serve", image=SERVER.image(PATHS, RLHAIKU_SERVE_RUN=RUN))


def model_to_serve() -> str:
    """A directory or a Hugging Face id; raises FileNotFoundError for a directory that holds no model."""
    if SERVER.model and not IS_TRAINED:
        return SERVER.model
    model = Path(SERVER.model) if SERVER.model else PATHS.newest_model(RUN)
    if model is None:
        raise FileNotFoundError(f"{PATHS.runs} has no complete checkpoint of run {RUN or '(any)'}: train one first")
    if not (model / "config.json").is_file():
        raise FileNotFoundError(f"{model} has no config.json: name a checkpoint's `hf` directory")
    return str(model)


@SERVER.function(app, PATHS, ("huggingface-cache", "vllm-cache", *(["rlhaiku-runs"] if IS_TRAINED else [])))
def serve() -> None:
    """Starts the server and returns; Modal waits for its port."""
    subprocess.Popen(SERVER.argv(model_to_serve(), "--reasoning-parser", "qwen3"))
