"""The cuts between the parts, read from the sources: who may import whom, and what nobody may do."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"vllm", "sglang", "megatron", "slime"}
BANNED = {
    "rlhaiku": {"ray", "modal", "actors", "launch"} | HEAVY,
    "actors": {"launch", "modal", "rlhaiku.coordinator"},
    "launch": {"tests", "benchmarks"},
}
HEAVY_HOME = "actors/engines/", "actors/trainers/"
LIGHT = ["rlhaiku", "rlhaiku.coordinator", "rlhaiku.haiku", "rlhaiku.metrics", "rlhaiku.evaluation", "rlhaiku.judge",
         "launch.cli", "launch.score",
         "actors.reward_worker"]  # fmt: skip


def sources(top):
    return sorted((ROOT / top).rglob("*.py"))


def imported(path):
    """Every module a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports break `modal run launch/cluster.py`"
            yield node.module


@pytest.mark.parametrize("top", BANNED)
def test_imports_point_down(top):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(top)
        for name in imported(path)
        for banned in BANNED[top]
        if name == banned or name.startswith(banned + ".")
    ]
    assert not wrong


def test_one_heavy_engine_per_file_inside_actors_only():
    for path in [*sources("actors"), *sources("launch")]:
        heavy = {name.split(".")[0] for name in imported(path)} & HEAVY
        assert len(heavy) <= (2 if heavy == {"megatron", "slime"} else 1), path
        assert not heavy or str(path.relative_to(ROOT)).startswith(HEAVY_HOME), path


def test_no_import_cycles():
    files = {
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__"): path
        for top in BANNED
        for path in sources(top)
    }
    edges = {module: {name for name in imported(path) if name in files} for module, path in files.items()}
    assert len(edges["rlhaiku.coordinator"]) > 5
    done = set()

    def visit(module, trail):
        assert module not in trail, f"import cycle {[*trail, module]}"
        if module not in done:
            for target in edges[module]:
                visit(target, [*trail, module])
            done.add(module)

    for module in edges:
        visit(module, [])


@pytest.mark.parametrize("module", LIGHT)
def test_importing_stays_light(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'datasets', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


WAITS_FOR_RAY = {"ray.get", "ray.wait"}
NEED_A_TIMEOUT = WAITS_FOR_RAY | {
    "subprocess.run", "subprocess.check_output", "subprocess.check_call", "subprocess.call", "urlopen",
    "urllib.request.urlopen", "socket.create_connection", "aiohttp.ClientSession", "ClientSession",
}
BLOCK_WITHOUT_ARGUMENTS = {"join", "wait", "acquire", "communicate", "get"}
"""Methods that wait for ever when they are given nothing: of threads, events, locks, processes, queues."""


def unbounded_waits(source):
    """Calls that may never end."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in NEED_A_TIMEOUT and not any(keyword.arg == "timeout" for keyword in node.keywords):
            yield f"{node.lineno}: {name} without timeout"
        is_method = isinstance(node.func, ast.Attribute) and node.func.attr in BLOCK_WITHOUT_ARGUMENTS
        if is_method and not node.args and not node.keywords:
            yield f"{node.lineno}: {name}()"


def test_every_wait_has_a_deadline():
    """Waits on Ray are in the one helper that treats a hang as a death; any other wait has a timeout of its own."""
    for top in BANNED:
        for path in sources(top):
            source = path.read_text()
            assert not list(unbounded_waits(source)), path
            waits_for_ray = any(f"{name}(" in source for name in WAITS_FOR_RAY)
            assert not waits_for_ray or path.relative_to(ROOT).name in ("waiting.py", "actor.py"), path


@pytest.mark.parametrize("line", [
    "ray.get(ref)", "thread.join()", "event.wait()", "subprocess.run(['sleep', '9'])", "queue.get()",
])
def test_waits_without_an_end_are_found(line):
    assert list(unbounded_waits(line))


def test_waits_with_an_end_are_allowed():
    bounded = "ray.get(ref, timeout=3)\n', '.join(names)\nthread.join(3)\nevent.wait(3)\nnames.get(key)"
    assert not list(unbounded_waits(bounded))


def test_coordinator_is_read_in_one_sitting():
    lines = (ROOT / "rlhaiku" / "coordinator.py").read_text().splitlines()
    assert len(lines) <= 150


def test_coordinator_knows_protocols_only():
    known = set(imported(ROOT / "rlhaiku" / "coordinator.py"))
    assert "rlhaiku.roles" in known
    assert not any(name.split(".")[0] in ("actors", "launch", "ray", "torch", "numpy") for name in known)


def test_public_names():
    import rlhaiku

    assert rlhaiku.__all__ == [
        "BadInput", "Completion", "Group", "Prompt", "RlhaikuError", "RunConfig", "RunFailed", "Scored", "ScoredGroup",
        "Unscored", "load_config",
    ]  # fmt: skip
    assert all(hasattr(rlhaiku, name) for name in rlhaiku.__all__)


def test_top_level_is_fixed():
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    folders = {name.split("/")[0] for name in tracked if "/" in name}
    assert folders <= {"rlhaiku", "actors", "launch", "benchmarks", "tests", ".ci"}
    assert sum((ROOT / name).stat().st_size for name in tracked if (ROOT / name).exists()) < 16_000_000
