"""The body of `train` without Modal and without Ray: what is asked of them, and what comes back."""

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from launch.by_value import by_value
from launch.cluster_run import Order, summary_of
from launch.paths import Paths
from launch.resources import Resources
from launch.run_volume import RunVolume
from rlhaiku.checkpoints import CheckpointStore, RunState
from rlhaiku.config import load_config, read_config, write_config
from rlhaiku.errors import ActorDied, BadInput, CrashLoop, RunFailed, WeightMismatch
from rlhaiku.haiku.dataset import prepare_embedded

pytestmark = pytest.mark.filterwarnings("ignore:The train function is executing locally")  # that is what is wanted

NEW = {"preset": "laptop", "source": "embedded", "run": "mine"}


class Stage:
    """Everything around the body: a volume, a cluster that only notes its size, and a run that does what it is told."""

    def __init__(self, root, monkeypatch):
        pytest.importorskip("modal", reason="needs the extra: pip install 'rlhaiku[modal]'")
        from launch import cluster, cluster_run, ray_cluster

        self.module, self.monkeypatch = cluster, monkeypatch
        self.call_id, self.rank, self.lost = "call-1", 0, ""
        self.clusters, self.runs, self.ends = [], [], lambda: True
        self.resources = Resources(gpu="", paths=Paths(root / "vol"))
        self.use(self.resources)
        prepare_embedded(self.resources.paths.data_set("embedded", "topics"))
        self.resources.paths.runs.mkdir()
        volume = SimpleNamespace(reload=lambda: None, commit=lambda: None)
        monkeypatch.setattr(cluster, "volumes", {str(self.resources.paths.runs): volume})
        monkeypatch.setattr(cluster, "PATHS", self.resources.paths)
        monkeypatch.setattr(cluster, "LOCAL_RUNS", root / "local")
        monkeypatch.setattr(cluster.modal, "current_function_call_id", lambda: self.call_id)
        monkeypatch.setattr(ray_cluster, "ModalRayCluster", self._cluster)
        monkeypatch.setattr(ray_cluster.Place, "discover", lambda nodes: ray_cluster.Place(self.rank, ("a", "b")))
        monkeypatch.setattr(cluster_run, "run_kept", self._run)
        for name in ("RAY_AUTH_TOKEN", "WANDB_API_KEY", "LLM_JUDGE_URL", "RAY_AUTH_MODE", "OMP_WAIT_POLICY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(ray_cluster.os, "environ", dict(ray_cluster.os.environ))

    def use(self, resources):
        self.monkeypatch.setattr(self.module, "RESOURCES", resources)

    @contextmanager
    def _cluster(self, place, cpus, gpus, dashboard=False):
        self.clusters.append((place.rank, cpus, gpus))
        yield SimpleNamespace(lost=self.lost, hold=self._hold)

    def _hold(self):
        raise LookupError("held")

    def _run(self, config, kept, things, hooks):
        self.runs.append((config, kept, things, hooks))
        finished = self.ends()
        comparison = SimpleNamespace(to_dict=dict)
        return SimpleNamespace(finished=finished, state=RunState(2), comparison=comparison)

    def train(self, **arguments):
        return self.module.train.local(**arguments)

    def keep_a_run(self, name, *overrides):
        """A run with a checkpoint on the volume, by another call."""
        volume = RunVolume(self.resources.paths.runs, self.module.LOCAL_RUNS, lambda: None)
        kept = volume.open(volume.new(name), "another call")
        CheckpointStore(kept.local / "checkpoints", 2).save(RunState(2), lambda directory: None)
        write_config(load_config("laptop", overrides), kept.local / "config.toml")
        kept.keep()
        return kept


@pytest.fixture
def stage(tmp_path, monkeypatch):
    return Stage(tmp_path, monkeypatch)


def test_a_new_run_trains_on_what_was_prepared(stage):
    assert summary_of(stage.train(**NEW)) == {"run": "mine", "step": 2}
    [(config, kept, things, hooks)] = stage.runs
    assert config.data.path == str(stage.resources.paths.data / "embedded-topics") and things == {}
    assert kept.remote == stage.resources.paths.runs / "mine" and not kept.has_checkpoint
    assert hooks.saved == kept.keep
    stage.train(**NEW | {"run": "other", "settings": "data.path=bundled"})
    assert stage.runs[1][0].data.path == "bundled"


@pytest.mark.parametrize(("arguments", "said"), [
    ({"preset": "labtop"}, "Did you mean 'laptop'"),
    ({"settings": "rollout.grup_size=4"}, "must name a setting"),
    ({"run": "taken"}, "--run must not name a run that is there"),
    ({"run": "", "resume": True, "settings": "rollout.group_size=1"}, "greater than or equal to 2"),
    ({"run": "nobody", "resume": True}, "complete checkpoint"),
    ({"source": "statworx/haiku"}, "rlhaiku prepare"),
    ({"settings": "model.path=/vol/nothing"}, "model.path must be"),
    ({"settings": "output.sinks='[\"wandb\"]'"}, "WANDB_API_KEY"),
    ({"settings": "judge.required=true"}, "LLM_JUDGE_URL"),
    ({"settings": "trainer.threads=4096"}, "trainer.threads"),
    ({"settings": "cluster.gpus_per_node=1"}, "cluster.gpus_per_node is 1"),
    ({"own": "3.99 abc"}, "equal Pythons"),
])
def test_a_mistake_is_an_answer_before_ray_starts_and_leaves_the_name_free(stage, capsys, arguments, said):
    stage.keep_a_run("taken")
    value = stage.train(**NEW | arguments)
    with pytest.raises(BadInput, match=said):
        summary_of(value)
    assert capsys.readouterr().out.startswith("error ")
    assert stage.clusters == [] and [path.name for path in stage.resources.paths.runs.iterdir()] == ["taken"]


def test_a_dashboard_without_a_token_is_an_answer(stage):
    stage.use(Resources(gpu="", paths=stage.resources.paths, has_dashboard=True))
    with pytest.raises(BadInput, match="RAY_AUTH_TOKEN"):
        summary_of(stage.train(**NEW))
    assert stage.clusters == []


@pytest.mark.parametrize("error", [CrashLoop("again and again"), WeightMismatch("not those weights")])
def test_what_a_retry_would_only_meet_again_is_an_answer(stage, error):
    def ends():
        raise error

    stage.ends = ends
    with pytest.raises(type(error), match=str(error)):
        summary_of(stage.train(**NEW))


def test_what_a_retry_can_help_is_raised(stage):
    def ends():
        raise ActorDied("gone")

    stage.ends = ends
    with pytest.raises(ActorDied):
        stage.train(**NEW)


def test_a_run_that_stopped_in_time_is_tried_again_with_a_fresh_timeout(stage, monkeypatch):
    stage.use(Resources(gpu="", paths=stage.resources.paths, timeout_s=0))
    stage.ends = lambda: not stage.runs[0][3].should_stop()
    with pytest.raises(RunFailed, match="mine stopped after step 2 and is saved: time is up; a retry goes on"):
        stage.train(**NEW)


def test_a_run_with_time_left_is_not_stopped(stage):
    stage.train(**NEW)
    assert not stage.runs[0][3].should_stop()


def test_an_interrupt_and_a_lost_node_say_so(stage):
    stage.ends = lambda: False
    with pytest.raises(KeyboardInterrupt):
        stage.train(**NEW)
    stage.lost = "1 of 2 nodes are gone"
    with pytest.raises(RunFailed, match="1 of 2 nodes are gone; a retry goes on"):
        stage.train(**NEW)


def test_a_resumed_run_has_its_own_settings_and_sizes(stage):
    """Whatever the preset says, which is the reference run's by default."""
    kept = stage.keep_a_run("mine", "data.path=bundled", "reward.num_workers=3")
    summary_of(stage.train(run="mine", resume=True, settings="num_steps=99"))
    [(config, again, _, hooks)] = stage.runs
    assert config == load_config("laptop", ["data.path=bundled", "reward.num_workers=3", "num_steps=99"])
    assert again.has_checkpoint and again.remote == kept.remote
    assert stage.clusters == [(0, 2 + 2 + 3, 0)]
    assert "data.path" not in hooks.resume_with and "--run mine --resume" in hooks.resume_with


def test_a_run_goes_on_with_the_reward_that_came_by_value(stage, monkeypatch):
    """Its settings name what nothing can import: the call brings it again."""
    monkeypatch.setenv("RLHAIKU_PYTHON", f"{sys.version_info[0]}.{sys.version_info[1]}")
    stage.keep_a_run("mine", "data.path=bundled", 'reward.functions={"own:f" = 1.0}')
    assert "error" not in stage.train(run="mine", resume=True, own=by_value(reward=lambda prompt, text: 1.0))
    with pytest.raises(BadInput, match="must be importable"):
        summary_of(stage.train(run="mine", resume=True))


def test_a_retry_goes_on_with_the_run_of_its_call(stage):
    stage.train(**NEW)
    assert summary_of(stage.train(**NEW))["run"] == "mine"
    stage.call_id = "call-2"
    with pytest.raises(BadInput, match="--run must not name"):
        summary_of(stage.train(**NEW))


def test_another_rank_has_the_head_s_size_and_leaves_the_volume_alone(stage):
    kept = stage.keep_a_run("mine", "data.path=bundled", "reward.num_workers=3")
    before = sorted(kept.remote.rglob("*"))
    stage.rank = 1
    with pytest.raises(LookupError, match="held"):
        stage.train(run="mine", resume=True)
    assert stage.clusters == [(1, 2 + 2 + 3, 0)] and stage.runs == []
    assert sorted(kept.remote.rglob("*")) == before


def test_the_dashboard_is_forwarded_once_it_is_locked(stage, monkeypatch, capsys):
    from launch import ray_cluster

    asked = []

    @contextmanager
    def forward(port):
        assert asked == ["locked?"]
        asked.append(port)
        yield SimpleNamespace(url="https://tunnel")

    monkeypatch.setattr(stage.module.modal, "forward", forward)
    monkeypatch.setattr(ray_cluster, "check_dashboard_is_locked", lambda: asked.append("locked?"))
    with stage.module._dashboard():
        assert asked == []
    stage.use(Resources(has_dashboard=True))
    with stage.module._dashboard():
        assert asked == ["locked?", 8265]
    assert "dashboard at https://tunnel" in capsys.readouterr().out


@pytest.mark.parametrize(("source", "prepared"), [
    ("statworx/haiku", ("statworx/haiku", "topics")), ("statworx/haiku:tutorial", ("statworx/haiku", "tutorial")),
    ("embedded", ("embedded", "topics")),
])
def test_main_prepares_and_trains_on_the_same_prompts(stage, monkeypatch, source, prepared):
    asked = []
    monkeypatch.setattr(stage.module, "prepare_dataset", SimpleNamespace(remote=lambda *args: asked.append(args)))
    stage.module.main(stage="prepare", preset="laptop", source=source)
    assert asked == [prepared]

    def train(**arguments):
        asked.append((arguments["source"], arguments["split"]))
        return {"error": CrashLoop("again")}

    monkeypatch.setattr(stage.module, "train", SimpleNamespace(remote=train))
    with pytest.raises(SystemExit) as end:
        stage.module.main(stage="train", preset="laptop", source=source)
    assert asked == [prepared] * 2 and end.value.code == 1


def test_main_ends_with_2_for_a_mistake_that_only_the_cluster_sees(stage, monkeypatch, capsys):
    answer = {"error": BadInput("--run must not", "mine", "Choose.")}
    monkeypatch.setattr(stage.module, "train", SimpleNamespace(remote=lambda **_: answer))
    with pytest.raises(SystemExit) as end:
        stage.module.main(stage="train", preset="laptop", resume=True)
    assert end.value.code == 2 and capsys.readouterr().err == "error --run must not; got 'mine'. Choose.\n"


def test_an_order_keeps_what_is_on_the_volume(stage):
    kept = stage.keep_a_run("mine", "data.path=bundled")
    order = Order("reference", "", "mine", True, "", "embedded", "topics")
    assert order.config(kept.remote, stage.resources) == read_config(kept.remote / "config.toml")
