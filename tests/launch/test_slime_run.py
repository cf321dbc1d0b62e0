"""Whole runs of the Megatron and SGLang path on real Ray: real collectives, real HTTP, fakes of the GPU classes."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch.attempts import Attempts
from launch.placement import plan_gpus
from rlhaiku.config import load_config, read_config, with_overrides, write_config
from rlhaiku.errors import ActorDied, ActorFailed, BadInput
from rlhaiku.ledger import Ledger
from tests.launch.test_cluster import SECRETS, planted_in, planted_in_what_runs
from tests.modal_offline.containers import Host

ROOT = Path(__file__).parents[2]
DRIVER = """
import sys
from pathlib import Path
from launch.local import run
from rlhaiku.config import read_config
result = run(read_config(Path(sys.argv[1])), output_dir=sys.argv[2], resume=len(sys.argv) > 3)
print("RECOVERED", [who for who, _ in result.recoveries])
"""
SLIME = [
    "rollout.engine=sglang", "trainer.backend=megatron", "rollout.num_engines=2", "cluster.gpus_per_node=2",
    "cluster.colocate=true", "num_steps=2", "output.save_interval=1", "cluster.wait_timeout_s=40",
]
MODAL = [
    "model.path=bundled", "rollout.group_size=4", "rollout.max_tokens=16", "evaluation.interval=100",
    "evaluation.num_prompts=2", "evaluation.samples_per_prompt=1", "evaluation.max_tokens=16", "reward.num_workers=1",
]
LIMIT_S = 240
MANY = 30
"""Steps of a run that something happens to in the middle: they are quick."""
FAKES = ROOT / "tests" / "slime_offline"


def pretend_gpus(directory, count):
    """A folder for PATH whose nvidia-smi lists so many cards."""
    directory.mkdir()
    lines = "".join(f"echo 'GPU {i}: Pretend'\n" for i in range(count))
    (directory / "nvidia-smi").write_text(f"#!/bin/sh\n{lines}")
    (directory / "nvidia-smi").chmod(0o755)
    return directory


def facts_of(facts, kind):
    """What actors of a kind were started with, as the fakes wrote it down."""
    file = facts / "started.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [row for row in rows if row["kind"] == kind]


class Run:
    """A run in processes of its own, with the fakes on its path and as many GPUs as it asks for."""

    def __init__(self, directory, config, overrides=()):
        self.directory, self.facts = directory / "run", directory / "facts"
        self.facts.mkdir()
        config = with_overrides(config, [*SLIME, *overrides])
        write_config(config, directory / "config.toml")
        driver = pretend_gpus(directory / "bin", config.cluster.gpus_per_node)
        self.environment = os.environ | {
            "PYTHONPATH": f"{ROOT}:{FAKES}",
            "PATH": f"{driver}:{os.environ['PATH']}",
            "SLIME_OFFLINE": str(self.facts),
        }

    def start(self, *more):
        config = self.directory.parent / "config.toml"
        command = [sys.executable, "-c", DRIVER, str(config), str(self.directory), *more]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return self

    def finish(self):
        self.said, _ = self.process.communicate(timeout=LIMIT_S)
        assert self.process.returncode == 0, self.said
        return self

    def started(self, kind):
        return facts_of(self.facts, kind)

    def until(self, happened):
        deadline_s = time.monotonic() + LIMIT_S
        while not happened():
            assert self.process.poll() is None, self.process.communicate()[0]
            if time.monotonic() > deadline_s:
                self.process.kill()
                pytest.fail(f"waited in vain; it said:\n{self.process.communicate()[0]}")
            time.sleep(0.05)

    def metrics(self):
        file = self.directory / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def make_run(tmp_path, config):
    made = []

    def make(*overrides):
        made.append(Run(tmp_path, config, overrides))
        return made[-1]

    yield make
    for run in made:
        if run.process.poll() is None:
            run.process.kill()
            run.process.communicate()


def assert_each_group_trained_once(run, steps=2):
    with Ledger(run.directory / "ledger.sqlite") as ledger:
        assert [claim for step in ledger.lineage() for claim in step.trained + step.dropped] == list(range(steps * 6))


def test_a_shared_run_puts_every_actor_on_its_card_and_finishes(make_run):
    run = make_run().start().finish()
    engines, ranks = run.started("engine"), run.started("rank")
    assert sorted((each["index"], each["base_gpu_id"], *each["gpus"]) for each in engines) == [(0, 0, 0), (1, 1, 1)]
    assert sorted((each["index"], *each["gpus"]) for each in ranks) == [(0, 0), (1, 1)]
    assert all(each["resources"]["GPU"] == 0.2 for each in engines)
    assert all(each["resources"]["GPU"] == 0.4 and not each["with_ref"] for each in ranks)
    for each in engines + ranks:
        assert each["env"]["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"] == "1"
        assert each["env"]["RAY_USE_UVLOOP"] == "0"
    assert all(each["env"]["NCCL_CUMEM_ENABLE"] == "0" for each in ranks)
    assert all(each["env"]["SGLANG_JIT_DEEPGEMM_PRECOMPILE"] == "false" for each in engines)
    rows = run.metrics()
    assert [row["train/grad_norm"] for row in rows] == [2.0, 2.0]
    assert "RECOVERED []" in run.said
    assert_each_group_trained_once(run)
    for each in engines:  # nobody outlives the run
        deadline_s = time.monotonic() + 10
        while Path(f"/proc/{each['server_pid']}").exists() and time.monotonic() < deadline_s:
            time.sleep(0.1)
        assert not Path(f"/proc/{each['server_pid']}").exists()


def test_a_split_run_and_its_resume(make_run, config):
    run = make_run("cluster.colocate=false", "cluster.gpus_per_node=3", "rollout.num_engines=1", "num_steps=1")
    run.start().finish()
    assert [each["gpus"] for each in run.started("engine")] == [[0]]
    assert sorted((each["index"], *each["gpus"]) for each in run.started("rank")) == [(0, 1), (1, 2)]
    path = run.directory.parent / "config.toml"
    write_config(with_overrides(read_config(path), ["num_steps=2"]), path)
    run.start("resume").finish()
    assert len(run.metrics()) == 2
    newest = run.directory / "checkpoints" / "step-000002" / "megatron"
    assert (newest / "latest_checkpointed_iteration.txt").read_text() == "2"
    import torch

    weights = torch.load(newest / "iter_0000002" / "state.pt", weights_only=True)
    assert all((tensor == 3).all() for tensor in weights.values())  # made as 1, plus 1 a step
    assert_each_group_trained_once(run)


def test_weights_go_through_memory_that_stays_open(make_run):
    """Every sync compares checksums of all elements, taken on both sides; a successor opens the memory anew."""
    run = make_run("cluster.weight_path=slots", f"num_steps={MANY}").start()
    run.until(run.metrics)
    os.kill(run.started("engine")[0]["pid"], signal.SIGKILL)
    run.finish()
    assert len(run.started("engine")) == 3 and len(run.started("rank")) == 2
    rows = run.metrics()
    assert len({row["sync/num_bytes"] for row in rows}) == 1
    assert rows[0]["sync/num_bytes"] == 2 * (6 * 2 + 3), "in bf16, as engines hold them"
    assert_each_group_trained_once(run, MANY)


def test_dead_engines_and_dead_servers_are_replaced_and_get_the_current_weights(make_run):
    run = make_run(f"num_steps={MANY}").start()
    run.until(run.metrics)
    (run.facts / "hold").touch()
    time.sleep(0.5)
    (run.facts / "fail-engine-start").touch()  # its first successor does not even start
    os.kill(run.started("engine")[0]["pid"], signal.SIGKILL)  # while it draws, as far as it can be arranged
    time.sleep(0.5)
    held = len(run.metrics())
    (run.facts / "hold").unlink()
    run.until(lambda: len(run.metrics()) > held)
    (run.facts / "hold").touch()
    time.sleep(0.5)  # not in an update: that would end the attempt
    os.kill(run.started("engine")[1]["server_pid"], signal.SIGKILL)
    (run.facts / "hold").unlink()
    run.finish()
    assert not (run.facts / "fail-engine-start").exists()
    assert len(run.started("engine")) == 4 and len(run.started("rank")) == 2, run.said  # the trainer stayed
    assert "RECOVERED ['rollout engine" in run.said
    assert len(run.metrics()) == MANY
    assert_each_group_trained_once(run, MANY)


def test_an_engine_killed_in_an_update_is_noticed_and_the_run_goes_on_from_its_checkpoint(make_run):
    run = make_run(f"num_steps={MANY}").start()
    run.until(run.metrics)
    (run.facts / "kill-engine-in-update").touch()
    started = time.monotonic()
    run.finish()
    assert len(run.started("rank")) == 4  # all actors were started again
    assert "starting again from the newest checkpoint" in run.said
    assert "RECOVERED ['the trainer'" in run.said
    assert len(run.metrics()) == MANY and time.monotonic() - started < LIMIT_S
    assert_each_group_trained_once(run, MANY)


def test_deaths_in_a_split_run_cost_an_attempt_each(make_run):
    """A rank between steps; an engine while a rank holds the lock, in the middle of a collective with it."""
    settings = ("cluster.colocate=false", "cluster.gpus_per_node=3", "rollout.num_engines=1", f"num_steps={MANY}")
    run = make_run(*settings, "cluster.wait_timeout_s=600").start()
    run.until(run.metrics)
    os.kill(run.started("rank")[1]["pid"], signal.SIGKILL)
    run.until(lambda: len(run.started("rank")) == 4)
    (run.facts / "kill-engine-holding-lock").touch()
    run.until(lambda: len(run.started("rank")) == 6)  # long before the deadline of a wait
    assert not (run.facts / "kill-engine-holding-lock").exists()
    with suppress(ProcessLookupError):  # stopped, it cannot see that it is orphaned; Ray may have ended it
        os.kill(run.started("engine")[1]["server_pid"], signal.SIGKILL)
    run.finish()
    assert run.said.count("starting again from the newest checkpoint") == 2
    assert len(run.started("engine")) == 3 and len(run.metrics()) == MANY
    assert_each_group_trained_once(run, MANY)


def test_an_attempt_after_a_death_may_fail_to_start():
    @contextmanager
    def start():
        raise ActorFailed("rollout engine 0 could not start: no memory")
        yield

    attempts = Attempts(SimpleNamespace(config=None), None, None, None, None)
    with pytest.raises(ActorDied, match="no memory"):
        attempts._attempt(start, resume=True, chaos=None, died_s=1.0)
    with pytest.raises(ActorFailed) as failure:
        attempts._attempt(start, resume=False, chaos=None, died_s=None)
    assert not isinstance(failure.value, ActorDied)


def test_modal_run_of_the_reference_preset_trains_on_the_cards_of_its_container(offline, tmp_path):
    (tmp_path / "facts").mkdir()
    image = {"PYTHONPATH": f"{FAKES}:{ROOT}", "PATH": str(pretend_gpus(tmp_path / "bin", 2)),
             "SLIME_OFFLINE": str(tmp_path / "facts")}
    settings = [*SLIME, *MODAL, "rollout.groups_per_step=4", "rollout.tile_groups=2"]
    ordinary, offline.plane.hosts[0] = offline.plane.hosts[0], Host(image=image)
    run = offline.plane.volume("rlhaiku-runs") / "slime"
    arguments = ("--preset", "reference", "--source", "embedded", "--run", "slime", "--settings", " ".join(settings))
    try:
        with offline.popen("run", "launch/cluster.py", *arguments, **SECRETS, RLHAIKU_GPU="H100:2") as process:
            offline.wait_for(lambda: process.poll() is not None or (run / "checkpoints" / "step-000001").exists())
            leaks, num_logs = planted_in_what_runs()
            output, _ = process.communicate(timeout=LIMIT_S)
    finally:
        offline.plane.hosts[0] = ordinary
    assert process.returncode == 0 and "Deprecat" not in output, output
    assert num_logs > 5 and leaks == [] and "PLANTED" not in output
    assert planted_in(tmp_path, offline.plane.root) == [], "what actors were started with is in there"
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert (run / "checkpoints" / "step-000002" / "hf" / "config.json").exists()
    engines, ranks = (facts_of(tmp_path / "facts", kind) for kind in ("engine", "rank"))
    assert sorted((each["index"], *each["gpus"]) for each in engines) == [(0, 0), (1, 1)]
    assert sorted((each["index"], *each["gpus"]) for each in ranks) == [(0, 0), (1, 1)]
    assert all(each["env"]["NCCL_CUMEM_ENABLE"] == "0" for each in ranks)


def test_what_actors_are_started_with_holds_no_secret():
    """Ray keeps and logs a runtime_env."""
    code = "from actors.trainers.slime_recipe import *; print(engine_environment() | trainer_environment())"
    environment = os.environ | SECRETS | {"PYTHONPATH": f"{FAKES}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "NCCL_CUMEM_ENABLE" in done.stdout and "PLANTED" not in done.stdout


def test_cards_of_the_reference_run():
    placement = plan_gpus(load_config("reference"))
    assert placement.engine_gpus == placement.rank_gpus == tuple(range(8))
    assert len(placement.bundles) == 16 and placement.total_cpus == 16


def test_cards_of_a_split_run():
    overrides = ["cluster.colocate=false", "rollout.num_engines=4"]
    placement = plan_gpus(load_config("reference", overrides))
    assert (placement.engine_gpus, placement.rank_gpus) == ((0, 1, 2, 3), (4, 5, 6, 7))


@pytest.mark.parametrize("overrides", [["cluster.colocate=false"], ["rollout.num_engines=9"]])
def test_engines_that_leave_no_card_are_refused(overrides):
    with pytest.raises(BadInput, match="engines and trainer"):
        plan_gpus(load_config("reference", overrides))


def test_cards_of_engines_and_copies_that_take_several():
    overrides = ["cluster.colocate=false", "rollout.num_engines=2", "rollout.gpus_per_engine=2"]
    placement = plan_gpus(load_config("reference", [*overrides, "trainer.tensor_parallel=4"]))
    assert (placement.engine_gpus, placement.rank_gpus, placement.gpus_per_engine) == ((0, 2), (4, 5, 6, 7), 2)
    with pytest.raises(BadInput, match="tensor_parallel must divide"):
        plan_gpus(load_config("reference", [*overrides, "trainer.tensor_parallel=3"]))
