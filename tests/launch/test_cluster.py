"""`modal run launch/cluster.py`, for real but for Modal: the whole way once, taken away in the middle of training."""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from actors.slime_pin import CHECK_OUT_SLIME, PUT_SLIME_ON_PATH, SLIME_IMAGE
from launch.paths import Paths
from rlhaiku.config import load_config, read_config
from rlhaiku.ledger import LEDGER_FILE
from tests.modal_offline.containers import Host

ROOT = Path(__file__).parent.parent.parent
TINY = (
    "rollout.groups_per_step=4 rollout.tile_groups=2 rollout.group_size=4 rollout.max_tokens=16 rollout.num_engines=1 "
    "evaluation.interval=100 evaluation.num_prompts=4 evaluation.samples_per_prompt=1 evaluation.max_tokens=16 "
    "output.save_interval=2 output.poems_interval=2 reward.gate=off"
)
SECRETS = {
    "HF_TOKEN": "hf_PLANTEDtoken", "LLM_JUDGE_API_KEY": "PLANTEDjudgekey", "RAY_AUTH_TOKEN": "PLANTEDraytoken",
    "LLM_JUDGE_MODAL_KEY": "PLANTEDproxykey", "LLM_JUDGE_MODAL_SECRET": "PLANTEDproxysecret",
}  # fmt: skip
NAMED = {"WANDB_API_KEY": "PLANTEDwandbkey"}
"""In a Modal secret."""


@dataclass
class Launch:
    """What a launch left behind."""

    output: str
    attempts: int
    run: Path
    functions: dict
    leaks: list[str]
    seen_ray_logs: int


def planted_in(*directories):
    """Files that hold a planted secret."""
    found = []
    for path in (path for directory in directories for path in directory.rglob("*") if path.is_file()):
        try:
            if b"PLANTED" in path.read_bytes():
                found.append(str(path))
        except FileNotFoundError:  # something is running
            continue
    return found


def command_lines():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes().split(b"\0")
        except OSError:
            continue


def ray_directories(pids):
    """Ray's directories in the arguments of processes."""
    lines = [Path(f"/proc/{pid}/cmdline") for pid in pids]
    parts = [os.fsdecode(part) for line in lines if line.exists() for part in line.read_bytes().split(b"\0")]
    prefix = "--temp-dir=/tmp/rlh-"
    return {Path("/tmp/rlh-" + part.removeprefix(prefix)) for part in parts if part.startswith(prefix)}


@pytest.fixture(scope="module")
def tutorial(offline, judge_server, vllm_on_path, new_port, tmp_path_factory):
    """The notebook, beside the launch below: both wait more than they compute."""
    chosen = {"PRESET": "laptop", "SOURCE": "embedded", "SETTINGS": f"{TINY} num_steps=2",
              "DATA": str(tmp_path_factory.mktemp("data"))}
    environment = {f"TUTORIAL_{name}": value for name, value in chosen.items()} | SECRETS
    environment |= {"RLHAIKU_SERVE_PORT": new_port(), "RLHAIKU_SERVE_MODAL_KEY": "PLANTEDservekey"}
    offline.plane.hosts[0] = Host(image={"PATH": str(vllm_on_path)})
    with subprocess.Popen(
        [sys.executable, "-W", "error::DeprecationWarning", "launch/tutorial.py"], cwd=ROOT, text=True,
        env=offline.environment | environment | {"LLM_JUDGE_URL": judge_server.url},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        yield process
        process.kill()


@pytest.fixture(scope="module")
def launch(offline, judge_server, tutorial):
    """All stages; the machine is taken away after the first checkpoint."""
    secrets = SECRETS | {"LLM_JUDGE_URL": judge_server.url, "RLHAIKU_SECRETS": "wandb-secret=WANDB_API_KEY"}
    offline.plane.named_secrets["wandb-secret"] = NAMED
    arguments = ("--preset", "laptop", "--source", "embedded", "--steps", "4", "--run", "first", "--settings", TINY)
    with offline.popen("run", "launch/cluster.py", *arguments, **secrets) as process:
        run = offline.plane.volume("rlhaiku-runs") / "first"
        offline.wait_for(lambda: process.poll() is not None or (run / "checkpoints" / "step-000002").exists())
        assert process.poll() is None, process.communicate()[0]
        call = offline.call_of("train", module="cluster")
        leaks, num_logs = planted_in_what_runs()
        offline.do(call.preempt)
        output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    app_id = offline.plane.app_of[call.function_id]
    functions = {name: offline.plane.functions[i] for name, i in offline.plane.function_ids(app_id).items()}
    return Launch(output, call.attempts, run, functions, leaks, num_logs)


def planted_in_what_runs():
    """Secrets in command lines and in Ray's directories, and how many logs of Ray were looked at."""
    lines = list(command_lines())
    parts = [os.fsdecode(part) for line in lines for part in line]
    rays = {Path(part.removeprefix("--temp-dir=")) for part in parts if part.startswith("--temp-dir=/tmp/rlh-")}
    leaks = [part for part in parts if "PLANTED" in part] + planted_in(*rays)
    return leaks, len([path for each in rays for path in each.glob("session_*/logs/*")])


def test_a_run_that_was_taken_away_goes_on_from_its_checkpoint(launch):
    assert launch.attempts == 2
    rows = [json.loads(line) for line in (launch.run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert launch.output.count("eval after step 0") == 1, "the second attempt did not begin again"
    assert "run first: structure" in launch.output and "Deprecat" not in launch.output
    go_on = "modal run launch/cluster.py --stage train --preset laptop --run first --resume"
    assert go_on in launch.output and "--output-dir" not in launch.output, "a container's paths are of no use"
    assert len(json.loads((launch.run / "attempts.json").read_text())) == 2


def test_the_volume_has_the_run_complete(launch, offline):
    checkpoints = sorted(path.name for path in (launch.run / "checkpoints").iterdir())
    assert checkpoints[-1] == "step-000004" and len(checkpoints) == 2
    assert {"config.toml", "metrics.jsonl", "samples.jsonl", "eval"} <= {path.name for path in launch.run.iterdir()}
    assert json.loads((launch.run / "eval" / "summary.json").read_text())["trained"]["prompts"] == 4
    assert not list(launch.run.rglob("*.partial"))
    ledgers = {str(path.relative_to(launch.run / "checkpoints")) for path in launch.run.rglob("*.sqlite*")}
    assert ledgers == {f"{name}/{LEDGER_FILE}" for name in checkpoints}, "copies; the live one stays behind"
    model = Paths(offline.plane.root / "vol").newest_model("first")  # what launch/serve.py takes
    assert model.resolve() == (launch.run / "checkpoints" / "step-000004" / "hf").resolve()
    assert AutoModelForCausalLM.from_pretrained(model).num_parameters() > 1_000_000
    assert offline.plane.commits.count("rlhaiku-runs") >= 5


def test_it_trained_on_what_prepare_dataset_wrote(launch, offline):
    data = offline.plane.volume("rlhaiku-data") / "embedded-topics"
    manifest = json.loads((data / "manifest.json").read_text())
    assert [file["rows"] for file in manifest["files"]] == [179, 61]
    assert read_config(launch.run / "config.toml").data.path.endswith("/data/embedded-topics")


def test_the_judge_is_asked_by_the_reward_workers_of_the_cluster(launch, judge_server):
    assert judge_server.headers
    for headers in judge_server.headers:
        assert headers["Authorization"] == f"Bearer {SECRETS['LLM_JUDGE_API_KEY']}"
        assert headers["Modal-Key"] == SECRETS["LLM_JUDGE_MODAL_KEY"]
    assert "judge: qwen3-4b at http://127.0.0.1" in launch.output


def test_secrets_are_in_no_argument_log_setting_or_checkpoint(launch, offline):
    assert launch.seen_ray_logs > 5
    assert launch.leaks == []
    assert "PLANTED" not in launch.output
    assert planted_in(offline.plane.root) == []


def test_the_tutorial_runs_cell_by_cell(tutorial, offline, judge_server):
    """With a reward and a rubric that only its own file has."""
    output, _ = tutorial.communicate(timeout=200)
    assert tutorial.returncode == 0, output
    assert "exact 5-7-5" in output and "after: " in output and "Deprecat" not in output
    assert "qwen3-4b-haiku at http" in output and "(4 prompts x 1)" in output, "what is served was scored"
    [call] = offline.plane.web.values()
    served = json.loads((call.containers[0].home / "vllm.json").read_text())[2]
    assert served == f"{offline.plane.root}/vol/runs/tutorial/checkpoints/step-000002/hf"
    run = offline.plane.volume("rlhaiku-runs") / "tutorial"
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    for sample in samples:
        parts = sample["components"]
        weight = load_config("laptop").reward.topic_weight
        haiku = parts["structure"] * parts["legitimacy"] * (1 - weight * (1 - parts["topic"])) + parts["style"]
        assert sample["reward"] == pytest.approx(haiku + 0.01 * sample["text"].lower().count("s"))
    assert any("How much weather" in body["messages"][-1]["content"] for body in judge_server.bodies)


def test_by_name_a_run_survives_its_container_and_main_resumes_it(launch, offline):
    """On what was prepared; a retry after a death, then the run's own settings whatever the preset says."""
    arguments = ("--preset", "laptop", "--source", "embedded", "--run", "named", "--settings", f"{TINY} num_steps=4")
    run = offline.plane.volume("rlhaiku-runs") / "named"
    with offline.popen("run", "launch/cluster.py::train", *arguments) as process:
        offline.wait_for(lambda: process.poll() is not None or (run / "checkpoints" / "step-000002").exists())
        assert process.poll() is None, process.communicate()[0]
        call = offline.call_of("train", module="cluster")
        directories = ray_directories(call.containers[0].pids())
        offline.do(lambda: call.containers[0].signal(signal.SIGKILL))
        output, _ = process.communicate(timeout=200)
    for directory in directories:
        shutil.rmtree(directory)
    assert process.returncode == 0 and (call.attempts, call.retries) == (2, 1), output
    assert output.count("eval after step 0") == 1 and "Deprecat" not in output
    config = read_config(run / "config.toml")
    assert config.data.path.endswith("/data/embedded-topics")
    resume = ("--stage", "train", "--run", "named", "--resume", "--steps", "6")
    status, output = offline.run("run", "launch/cluster.py", *resume)
    assert status == 0 and "run named: structure" in output, output
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [*range(1, 7)]
    assert read_config(run / "config.toml") == config.model_copy(update={"num_steps": 6})


def test_a_mistake_is_neither_paid_for_nor_tried_again(launch, offline):
    calls = len(offline.plane.calls)
    status, output = offline.run("run", "launch/cluster.py", "--preset", "labtop")
    assert status == 2 and "Did you mean 'laptop'" in output and "Traceback" not in output, output
    assert len(offline.plane.calls) == calls
    again = ("--stage", "train", "--preset", "laptop", "--source", "embedded", "--run", "first")
    status, output = offline.run("run", "launch/cluster.py", *again)
    assert status == 2 and "--run must not name a run that is there; got 'first'" in output, output
    assert "Traceback" not in output and offline.call_of("train", module="cluster").attempts == 1


def test_a_part_of_a_host_is_no_cluster(offline):
    status, output = offline.run("deploy", "--name", "four", "launch/cluster.py", RLHAIKU_GPU="H100:4")
    assert status == 0, output
    train = offline.plane.function("four", "train")
    assert train.resources.gpu_config.count == 4 and not train._experimental_group_size and not train.resources.rdma


def test_the_train_function_as_modal_sees_it(launch, offline):
    train = launch.functions["train"]
    assert (train.resources.gpu_config.gpu_type, train.resources.gpu_config.count) == ("H100", 8)
    assert train._experimental_group_size == 1 and train.resources.rdma and train.i6pn_enabled
    assert train.timeout_secs == 24 * 3600
    assert (train.retry_policy.retries, train.retry_policy.initial_delay_ms) == (10, 0)
    mounted = {offline.plane.volumes[mount.volume_id]: mount.mount_path for mount in train.volume_mounts}
    root = f"{offline.plane.root}/vol"
    assert mounted == {
        "huggingface-cache": f"{root}/huggingface", "vllm-cache": f"{root}/vllm", "rlhaiku-data": f"{root}/data",
        "rlhaiku-runs": f"{root}/runs",
    }  # fmt: skip
    local, named = (offline.plane.secrets[secret] for secret in train.secret_ids)
    assert set(local) == {*SECRETS, "LLM_JUDGE_URL"} and named == NAMED


def test_stages_before_training_use_no_gpu(launch):
    for name in ("download_model", "prepare_dataset", "convert_checkpoint"):
        function = launch.functions[name]
        assert not function.resources.gpu_config.count and not function._experimental_group_size


def test_the_image_is_pinned(launch, offline):
    commands = offline.plane.dockerfile(launch.functions["train"].image_id)
    assert commands[0] == f"FROM {SLIME_IMAGE}" and "@sha256:" in SLIME_IMAGE
    assert [line for line in commands if line in (f"RUN {CHECK_OUT_SLIME}", f"RUN {PUT_SLIME_ON_PATH}")] == [
        f"RUN {CHECK_OUT_SLIME}", f"RUN {PUT_SLIME_ON_PATH}",
    ]  # fmt: skip
    [install] = [line for line in commands if "uv pip install" in line]
    assert "pydantic==2.14.3" in install and not {">", "<"} & set(install)
    assert any("ghcr.io/astral-sh/uv:0.9.7" in line for line in commands)
    assert not any("PLANTED" in line for line in commands)


def test_containers_get_the_packages_with_their_data(launch, offline):
    mounts = launch.functions["train"].mount_ids
    files = {name for mount in mounts for name in offline.plane.mounts[mount]}
    assert "/root/cluster.py" in files
    for name in subprocess.run(["git", "ls-files", "rlhaiku", "actors", "launch"], cwd=ROOT, capture_output=True,
                               text=True, check=True).stdout.split():  # fmt: skip
        assert f"/root/{name}" in files
    assert not any(name.startswith(("/root/tests", "/root/benchmarks")) for name in files)


def test_only_what_is_started_on_modal_imports_modal():
    users = set()
    for top in ("rlhaiku", "actors", "launch"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if any(name.split(".")[0] == "modal" for name in names):
                    users.add(path.relative_to(ROOT / "launch").name)
    assert users == {"cluster.py", "judge.py", "ray_cluster.py", "serve.py", "tutorial.py", "vllm_app.py"}


@pytest.mark.parametrize("name", ["cluster", "serve", "judge"])
def test_importing_warns_of_nothing(name):
    """Modal announces what it will drop by warnings; a fresh process shows those that an earlier import has used up."""
    code = f"import warnings, modal; warnings.simplefilter('error'); import {name}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "launch", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
