"""The LLM judge as a Modal app of its own: a vLLM OpenAI server. `modal deploy launch/judge.py`

Every choice is an environment variable at deploy time. Point a run at it with LLM_JUDGE_URL (what `modal deploy`
prints), LLM_JUDGE_MODAL_KEY and LLM_JUDGE_MODAL_SECRET (a proxy auth token of the workspace). Nothing in here is
special: the same judge runs wherever `vllm serve` does, as does any OpenAI-compatible server with structured output.
"""

import os
import subprocess

import modal

MODEL = os.environ.get("RLHAIKU_JUDGE_MODEL", "Qwen/Qwen3-4B")
"""Hugging Face id of the weights."""
SERVED_NAME = os.environ.get("RLHAIKU_JUDGE_SERVED_NAME", "qwen3-4b")
"""What requests call the model; the default is also the client's default LLM_JUDGE_MODEL."""
GPU = os.environ.get("RLHAIKU_JUDGE_GPU", "H100")
GPU_COUNT = int(os.environ.get("RLHAIKU_JUDGE_GPU_COUNT", "1"))
EAGER = os.environ.get("RLHAIKU_JUDGE_EAGER") == "1"
"""Without CUDA graphs: starts sooner, answers more slowly."""
IS_PUBLIC = os.environ.get("RLHAIKU_JUDGE_PUBLIC") == "1"
"""Answer anybody who knows the URL; otherwise Modal's proxy asks for a token before a container is started."""

MAX_MODEL_LEN = 8192
"""Tokens of a request and its answer; eight poems of a haiku's length take 2000."""
PORT = 8000
CONCURRENT_INPUTS = 64
"""As many as one judge client sends at once."""
IDLE_S = 15 * 60
START_S = 15 * 60
LONGEST_REQUEST_S = 10 * 60
STRUCTURED_OUTPUT = '{"backend": "xgrammar", "disable_any_whitespace": true}'
"""Compact JSON: blanks between its parts are legal, and a small model fills its whole answer with them."""

HF_CACHE, VLLM_CACHE = "/root/.cache/huggingface", "/root/.cache/vllm"
SETTINGS = {
    "RLHAIKU_JUDGE_MODEL": MODEL,
    "RLHAIKU_JUDGE_SERVED_NAME": SERVED_NAME,
    "RLHAIKU_JUDGE_GPU_COUNT": str(GPU_COUNT),
    "RLHAIKU_JUDGE_EAGER": str(int(EAGER)),
}
"""The container imports this file too, and must come to the same choices."""

image = (
    modal.Image.from_registry("nvidia/cuda:12.8.0-devel-ubuntu22.04", add_python="3.12")
    .entrypoint([])
    .uv_pip_install("vllm==0.13.0", "huggingface-hub==0.36.0")
    .env({"HF_XET_HIGH_PERFORMANCE": "1", "VLLM_NO_USAGE_STATS": "1", **SETTINGS})
)
app = modal.App("rlhaiku-judge", image=image)


def judge_argv(model: str, served_name: str, gpu_count: int = 1, eager: bool = False, port: int = PORT) -> list[str]:
    """The server's command line; thinking is switched off by each request."""
    argv = ["vllm", "serve", model, "--served-model-name", served_name, "--host", "0.0.0.0", "--port", str(port)]
    argv += ["--tensor-parallel-size", str(gpu_count), "--max-model-len", str(MAX_MODEL_LEN)]
    argv += ["--max-num-seqs", str(CONCURRENT_INPUTS), "--enable-prefix-caching"]
    argv += ["--structured-outputs-config", STRUCTURED_OUTPUT, "--uvicorn-log-level", "warning"]
    return [*argv, "--enforce-eager"] if eager else argv


@app.function(
    gpu=f"{GPU}:{GPU_COUNT}",
    volumes={
        HF_CACHE: modal.Volume.from_name("huggingface-cache", create_if_missing=True),
        VLLM_CACHE: modal.Volume.from_name("vllm-cache", create_if_missing=True),
    },
    timeout=LONGEST_REQUEST_S,
    startup_timeout=START_S,
    scaledown_window=IDLE_S,
)
@modal.concurrent(max_inputs=CONCURRENT_INPUTS)
@modal.web_server(PORT, startup_timeout=START_S, requires_proxy_auth=not IS_PUBLIC)
def serve() -> None:
    """Starts the server and returns; Modal waits for its port and sends it requests until it has been idle."""
    subprocess.Popen(judge_argv(MODEL, SERVED_NAME, GPU_COUNT, EAGER))
