"""The judge's Modal app, as far as it can be looked at without Modal."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("modal", reason="needs the extra: pip install 'rlhaiku[modal]'")
ROOT = Path(__file__).parent.parent.parent
LAUNCH = ROOT / "launch"


def imported(monkeypatch, **environment):
    """The file as `modal deploy launch/judge.py` imports it: top-level module `judge`, its folder on the path."""
    for name in ("MODEL", "SERVED_NAME", "GPU", "GPU_COUNT", "EAGER", "PUBLIC"):
        monkeypatch.delenv(f"RLHAIKU_JUDGE_{name}", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(f"RLHAIKU_JUDGE_{name}", value)
    monkeypatch.syspath_prepend(str(LAUNCH))
    monkeypatch.delitem(sys.modules, "judge", raising=False)
    return importlib.import_module("judge")


@pytest.fixture
def judge(monkeypatch):
    return imported(monkeypatch)


GOLDEN = [
    *("vllm", "serve", "Qwen/Qwen3-4B", "--served-model-name", "qwen3-4b", "--host", "0.0.0.0", "--port", "8000"),
    *("--tensor-parallel-size", "1", "--max-model-len", "8192", "--max-num-seqs", "64"),
    *("--enable-prefix-caching", "--structured-outputs-config"),
    '{"backend": "xgrammar", "disable_any_whitespace": true}',
    *("--uvicorn-log-level", "warning"),
]


def definition(judge):
    """What the decorators collected. Modal keeps it to itself, and only until a control plane has asked for it."""
    return next(part for part in vars(judge.serve).values() if type(part).__name__ == "_Function")


def test_argv(judge):
    assert judge.judge_argv("Qwen/Qwen3-4B", "qwen3-4b") == GOLDEN
    assert judge.judge_argv("Qwen/Qwen3-4B", "qwen3-4b", eager=True) == [*GOLDEN, "--enforce-eager"]
    argv = judge.judge_argv("a model; rm -rf /", "my judge", gpu_count=2, port=9000)
    assert argv[:5] == ["vllm", "serve", "a model; rm -rf /", "--served-model-name", "my judge"]
    assert argv[argv.index("--port") + 1] == "9000" and argv[argv.index("--tensor-parallel-size") + 1] == "2"


def test_the_name_is_the_one_clients_ask_for(judge):
    from rlhaiku.judge.settings import DEFAULT_MODEL

    assert judge.SERVED_NAME == DEFAULT_MODEL


def test_the_body_starts_exactly_this_server(judge, monkeypatch):
    started = []
    monkeypatch.setattr(judge.subprocess, "Popen", lambda *args, **kwargs: started.append((args, kwargs)))
    with pytest.warns(UserWarning, match="mounted Volume"):  # true: this runs the body here
        judge.serve.local()
    assert started == [((GOLDEN,), {})], "a list, and no shell"


def test_the_function_as_modal_will_see_it(judge):
    assert judge.app.name == "rlhaiku-judge"
    function = definition(judge)
    assert function._spec.gpus == "H100:1"
    assert set(function._spec.volumes) == {"/root/.cache/huggingface", "/root/.cache/vllm"}
    web = function._webhook_config
    assert (web.web_server_port, web.web_server_startup_timeout, web.requires_proxy_auth) == (8000, 900, True)
    assert (judge.IDLE_S, judge.CONCURRENT_INPUTS) == (900, 64)


def test_the_environment_chooses_and_the_container_agrees(monkeypatch):
    chosen = {"MODEL": "/m", "SERVED_NAME": "other", "GPU": "A100", "GPU_COUNT": "2", "EAGER": "1", "PUBLIC": "1"}
    judge = imported(monkeypatch, **chosen)
    function = definition(judge)
    assert function._spec.gpus == "A100:2" and not function._webhook_config.requires_proxy_auth
    shipped = {name.removeprefix("RLHAIKU_JUDGE_"): value for name, value in judge.SETTINGS.items()}
    again = imported(monkeypatch, **shipped)
    assert (again.MODEL, again.SERVED_NAME, again.GPU_COUNT, again.EAGER) == ("/m", "other", 2, True)


def test_importing_warns_of_nothing():
    """Modal announces what it will drop by warnings; a fresh process shows those that an earlier import has used up."""
    code = "import warnings, modal; warnings.simplefilter('error'); import judge"
    done = subprocess.run([sys.executable, "-c", code], cwd=LAUNCH, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_modal_is_imported_here_only():
    users = set()
    for top in ("rlhaiku", "actors", "launch"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if any(name.split(".")[0] == "modal" for name in names):
                    users.add(str(path.relative_to(ROOT)))
    assert users == {"launch/judge.py"}
