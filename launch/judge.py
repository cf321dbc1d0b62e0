"""The LLM judge as a Modal app of its own: a vLLM OpenAI server. `modal deploy launch/judge.py`

Every choice is an environment variable at deploy time: RLHAIKU_JUDGE_MODEL, _SERVED_NAME, _GPU, _GPU_COUNT, _EAGER,
_PUBLIC, _VLLM_ARGS, _SECRETS (names of Modal secrets); HF_TOKEN goes along when it is set. Point a run at it with
LLM_JUDGE_URL (what `modal deploy` prints), LLM_JUDGE_MODAL_KEY and LLM_JUDGE_MODAL_SECRET (a proxy auth token of the
workspace). Nothing in here is special: the same judge runs wherever `vllm serve` does, as does any OpenAI-compatible
server with structured output.
"""

import subprocess

import modal

from launch.paths import Paths
from launch.vllm_app import Server

CONCURRENT_INPUTS = 64
"""As many as one judge client sends at once."""
MAX_MODEL_LEN = 8192
"""Tokens of a request and its answer; eight poems of a haiku's length take 2000."""
STRUCTURED_OUTPUT = '{"backend": "xgrammar", "disable_any_whitespace": true}'
"""Compact JSON: blanks between its parts are legal, and a small model fills its whole answer with them."""

PATHS = Paths.from_environment()
# The name is also the client's default LLM_JUDGE_MODEL.
SERVER = Server.from_environment("RLHAIKU_JUDGE_", "Qwen/Qwen3-4B", "qwen3-4b", CONCURRENT_INPUTS)
app = modal.App("rlhaiku-judge", image=SERVER.image(PATHS))


def judge_argv() -> list[str]:
    """The server's command line; thinking is switched off by each request."""
    arguments = ["--max-model-len", str(MAX_MODEL_LEN), "--enable-prefix-caching"]
    return SERVER.argv(SERVER.model, *arguments, "--structured-outputs-config", STRUCTURED_OUTPUT)


@SERVER.function(app, PATHS, ("huggingface-cache", "vllm-cache"))
def serve() -> None:
    """Starts the server and returns; Modal waits for its port."""
    subprocess.Popen(judge_argv())
