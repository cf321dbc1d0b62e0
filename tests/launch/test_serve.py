"""The two vLLM apps, deployed on the stand-in; the model that training left is served and scored over HTTP."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch.cli import app as cli
from tests.tiny import save_tiny_model

ROOT = Path(__file__).parent.parent.parent
SERVE = [
    *("--served-model-name", "qwen3-4b-haiku", "--host", "0.0.0.0", "--port", "{port}"),
    *("--tensor-parallel-size", "1", "--max-num-seqs", "32", "--uvicorn-log-level", "warning"),
    *("--reasoning-parser", "qwen3", "--max-model-len", "2048", "--enforce-eager"),
]
JUDGE = [
    *("vllm", "serve", "Qwen/Qwen3-4B", "--served-model-name", "qwen3-4b", "--host", "0.0.0.0", "--port", "8000"),
    *("--tensor-parallel-size", "1", "--max-num-seqs", "64", "--uvicorn-log-level", "warning"),
    *("--max-model-len", "8192", "--enable-prefix-caching", "--structured-outputs-config"),
    '{"backend": "xgrammar", "disable_any_whitespace": true}',
]


@pytest.fixture(scope="module")
def served(offline, vllm_on_path, new_port):
    """`modal deploy launch/serve.py` over a volume with two checkpoints; its container has a `vllm` on its PATH."""
    checkpoints = offline.plane.volume("rlhaiku-runs") / "served" / "checkpoints"
    for step in (2, 4):
        save_tiny_model(checkpoints / f"step-{step:06d}" / "hf")
        (checkpoints / f"step-{step:06d}" / "coordinator.json").write_text("{}")
    port = new_port()
    chosen = {"RUN": "served", "PORT": port, "EAGER": "1", "VLLM_ARGS": "--max-model-len 2048"}
    environment = {f"RLHAIKU_SERVE_{name}": value for name, value in chosen.items()}
    status, output = offline.run("deploy", "launch/serve.py", **environment)
    assert status == 0, output
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{vllm_on_path}:{os.environ['PATH']}")
        call = offline.serve("rlhaiku-serve", "serve")
        offline.wait_for(lambda: answers(port), 60)
    yield port, json.loads((call.containers[0].home / "vllm.json").read_text())
    offline.do(call.kill)
    shutil.rmtree(checkpoints.parent)


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def test_the_newest_checkpoint_of_the_training_volume_is_served(served, offline):
    port, argv = served
    newest = f"{offline.plane.root}/vol/runs/served/checkpoints/step-000004/hf"
    assert argv[1:] == ["serve", newest, *(part.format(port=port) for part in SERVE)]


def test_what_is_served_is_scored_over_http(served, tmp_path):
    port, _ = served
    settings = ["evaluation.num_prompts=3", "evaluation.samples_per_prompt=2", "evaluation.max_tokens=8"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    url = f"http://127.0.0.1:{port}"
    done = CliRunner().invoke(cli, ["evaluate", "--url", url, "--output", str(tmp_path / "out.json"), *arguments])
    assert done.exit_code == 0, done.output
    assert "structure" in done.output and "(3 prompts x 2)" in done.output
    summary = json.loads((tmp_path / "out.json").read_text())
    assert (summary["prompts"], summary["completions"]) == (3, 6)


def test_a_server_that_refuses_is_not_scored(served):
    port, _ = served
    url = f"http://127.0.0.1:{port}/v1"
    done = CliRunner().invoke(cli, ["evaluate", "--url", url, "--model", "other", "--set", "evaluation.num_prompts=2"])
    assert done.exit_code == 1 and "answered 404" in str(done.exception)


def test_the_serve_function_as_modal_sees_it(served, offline):
    function = offline.plane.function("rlhaiku-serve", "serve")
    web = function.webhook_config
    assert (function.resources.gpu_config.gpu_type, function.resources.gpu_config.count) == ("H100", 1)
    assert (web.web_server_startup_timeout, web.requires_proxy_auth) == (900, True)
    assert (function.task_idle_timeout_secs, function.max_concurrent_inputs) == (900, 32)
    assert (function.timeout_secs, function.startup_timeout_secs) == (600, 900)
    mounted = {offline.plane.volumes[mount.volume_id]: mount.mount_path for mount in function.volume_mounts}
    assert mounted["rlhaiku-runs"] == f"{offline.plane.root}/vol/runs", "the volume that training writes"


def test_a_hugging_face_id_is_served_without_the_volume_and_the_judge_shares_it_all(offline):
    serve = {"RLHAIKU_SERVE_MODEL": "Qwen/Qwen3-0.6B", "RLHAIKU_SERVE_GPU": "A100", "RLHAIKU_SERVE_GPU_COUNT": "2",
             "HF_TOKEN": "hf_PLANTEDserve", "RLHAIKU_SERVE_SECRETS": "hub"}
    offline.plane.named_secrets["hub"] = {"OTHER": "value"}
    status, output = offline.run("deploy", "--name", "smoke", "launch/serve.py", **serve)
    assert status == 0, output
    function = offline.plane.function("smoke", "serve")
    names = {offline.plane.volumes[mount.volume_id] for mount in function.volume_mounts}
    assert names == {"huggingface-cache", "vllm-cache"}
    assert (function.resources.gpu_config.gpu_type, function.resources.gpu_config.count) == ("A100", 2)
    given = [offline.plane.secrets[secret] for secret in function.secret_ids]
    assert given == [{"HF_TOKEN": "hf_PLANTEDserve"}, {"OTHER": "value"}]
    status, output = offline.run("deploy", "launch/judge.py", RLHAIKU_JUDGE_PUBLIC="1")
    assert status == 0, output
    judge = offline.plane.function("rlhaiku-judge", "serve")
    assert judge.max_concurrent_inputs == 64 and not judge.webhook_config.requires_proxy_auth
    assert {offline.plane.volumes[mount.volume_id] for mount in judge.volume_mounts} == names
    commands = offline.plane.dockerfile(judge.image_id)
    assert commands[0].startswith("FROM nvidia/cuda:12.8.1") and "@sha256:" in commands[0]
    assert any("ghcr.io/astral-sh/uv:0.9.7" in line for line in commands)


def printed(code, **environment):
    """What a fresh process prints that has the apps' modules but, like their containers, nothing of rlhaiku."""
    code = f"import sys; sys.modules['rlhaiku'] = None; {code}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "launch", capture_output=True, text=True, check=False,
        env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return done.stdout or done.stderr


def test_the_judge_is_started_as_it_always_was():
    assert json.loads(printed("import json, judge; print(json.dumps(judge.judge_argv()))")) == JUDGE
    shell = printed("import judge; print(judge.judge_argv()[2])", RLHAIKU_JUDGE_MODEL="/a model; rm -rf /")
    assert shell == "/a model; rm -rf /\n", "one argument: there is no shell"


def test_the_container_comes_to_the_choices_of_the_deployment():
    chosen = {f"RLHAIKU_JUDGE_{name}": value for name, value in {
        "MODEL": "/m", "SERVED_NAME": "other", "GPU": "A100", "GPU_COUNT": "2", "EAGER": "1", "PUBLIC": "1",
        "VLLM_ARGS": "--a 'b c'", "PORT": "1", "SECRETS": "hub,other",
    }.items()}  # fmt: skip
    assert eval(printed("import judge; print(judge.SERVER.environment)", **chosen)) == chosen


@pytest.mark.parametrize(("environment", "message"), [
    ({}, "no complete checkpoint"),
    ({"RLHAIKU_SERVE_MODEL": "/tmp"}, "/tmp has no config.json"),
])
def test_a_directory_that_holds_no_model_is_refused(environment, message, tmp_path):
    said = printed("import serve; serve.model_to_serve()", RLHAIKU_VOLUMES=str(tmp_path), **environment)
    assert "FileNotFoundError" in said and message in said


@pytest.mark.parametrize(("name", "value", "message"), [
    ("GPU_COUNT", "9", "a web server cannot be clustered; got '9'"),
    ("GPU_COUNT", "two", "1 to 8"),
    ("MODEL", "./runs/x", "got './runs/x'"),
    ("MODEL", "runs/x/hf", "a hub id like owner/name"),
])
def test_what_cannot_be_served_is_refused_before_it_is_deployed(name, value, message):
    assert message in printed("import serve", **{f"RLHAIKU_SERVE_{name}": value})


def test_the_judge_has_the_name_that_clients_ask_for():
    from rlhaiku.judge.settings import DEFAULT_MODEL

    assert printed("import judge; print(judge.SERVER.served_name)") == f"{DEFAULT_MODEL}\n"
