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


def test_a_runs_driver_loads_no_models():
    """It starts them in other processes; loading what they need takes 1.3 of 4.6 seconds."""
    heavy = ("transformers.modeling_utils", "torch.distributed.fsdp")
    code = f"import sys, launch.local; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


WAITS_FOR_RAY = {"ray.get", "ray.wait"}
NEED_A_TIMEOUT = WAITS_FOR_RAY | {
    "subprocess.run", "subprocess.check_output", "subprocess.check_call", "subprocess.call", "urlopen",
    "urllib.request.urlopen", "socket.create_connection", "aiohttp.ClientSession", "ClientSession", "asyncio.wait",
    "asyncio.wait_for", "asyncio.as_completed", "concurrent.futures.wait", "futures.wait", "as_completed",
    "ray.util.wait", "requests.get", "requests.post", "httpx.get", "httpx.post", "httpx.stream", "httpx.Client",
    "dist.init_process_group", "ProcessGroupGloo", "dist.ProcessGroupGloo", "TCPStore", "dist.TCPStore",
    "dist.new_group", "dist.monitored_barrier",
}
"""Functions that take a timeout, which must be there and not None."""
NEVER_BOUNDED = {
    "dist.barrier", "dist.broadcast", "dist.all_reduce", "dist.all_gather", "dist.gather", "os.waitpid", "os.wait",
    "ray.init", "ray.shutdown", "wandb.init", "signal.pause", "input",
}
"""Functions that end when somebody else is done; who needs one is in `BOUNDED_ELSEWHERE`, with the reason."""
BLOCK_WITHOUT_ARGUMENTS = {"join", "wait", "acquire", "communicate", "get", "result", "exception", "finish"}
"""Methods that wait for ever when given nothing or None: of threads, events, locks, processes, queues, futures."""
BLOCK_ALWAYS = {"recv", "recv_into", "recvfrom", "accept", "serve_forever", "barrier"}
"""Methods that end when the other side wants to."""
NO_ALIAS = {
    "ray": {"get", "wait"}, "subprocess": {"run", "call", "check_call", "check_output"},
    "asyncio": {"wait", "wait_for"},
    "concurrent.futures": {"wait", "as_completed"}, "requests": {"get", "post"}, "httpx": {"get", "post", "stream"},
}  # fmt: skip
"""Under another name the calls above would not be recognised."""
BOUNDED_ELSEWHERE = {
    ("rlhaiku/judge/client.py", "asyncio.wait"): "each request inside has a timeout, each outage judge.give_up_s",
    ("rlhaiku/judge/client.py", "future.result"): "asyncio's, which never waits; the future is done",
    ("rlhaiku/judge/client.py", "future.exception"): "asyncio's, which never waits; the future is done",
    ("actors/weight_relay.py", "ProcessGroupGloo"): "the timeout is in its options",
    ("actors/trainers/sharded_policy.py", "dist.all_reduce"): "the process group has a timeout",
    ("launch/ray_runtime.py", "ray.init"): "Ray gives its own processes a limit to start in",
    ("launch/ray_runtime.py", "ray.shutdown"): "Ray kills its own processes when they do not end",
    ("launch/ray_cluster.py", "ray.init"): "Ray's own limit; the head has just answered",
    ("launch/sinks.py", "wandb.init"): "its setting init_timeout, 90 s by default",
}
"""(file, call) -> what ends it."""


def is_none(node):
    return isinstance(node, ast.Constant) and node.value is None


def unbounded(call):
    """Whether a call may never end."""
    name, keywords = ast.unparse(call.func), {keyword.arg: keyword.value for keyword in call.keywords}
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    has_timeout = "timeout" in keywords and not is_none(keywords["timeout"])
    if name in NEED_A_TIMEOUT:
        return not has_timeout and not (name == "asyncio.wait_for" and len(call.args) > 1 and not is_none(call.args[1]))
    if name in NEVER_BOUNDED or method in BLOCK_ALWAYS:
        return "WNOHANG" not in ast.unparse(call)
    if name.endswith("ClientTimeout"):
        return "total" not in keywords or is_none(keywords["total"])
    if method == "flock":
        return "LOCK_NB" not in ast.unparse(call)
    if name == "select.select":
        return len(call.args) < 4 or is_none(call.args[3])
    if method in BLOCK_WITHOUT_ARGUMENTS and not has_timeout:
        given = [*call.args, *keywords.values()]
        blocks = isinstance(given[0], ast.Constant) and given[0].value in (None, True) if given else True
        return blocks and len(call.args) < 2
    return False


def unbounded_waits(source):
    """Calls that may never end, and imports that would hide one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and unbounded(node):
            yield node.lineno, ast.unparse(node.func)
        if isinstance(node, ast.ImportFrom):
            hidden = NO_ALIAS.get(node.module, set()) & {alias.name for alias in node.names}
            yield from ((node.lineno, f"from {node.module} import {name}") for name in hidden)
        if isinstance(node, ast.Import):
            yield from ((node.lineno, f"import {a.name} as") for a in node.names if a.asname and a.name in NO_ALIAS)


def test_every_wait_has_a_deadline():
    """Waits on Ray are in the one helper that treats a hang as a death; any other wait has a timeout of its own."""
    allowed = set()
    for top in BANNED:
        for path in sources(top):
            source, file = path.read_text(), str(path.relative_to(ROOT))
            for line, call in unbounded_waits(source):
                assert (file, call) in BOUNDED_ELSEWHERE, f"{file}:{line}: {call} without a timeout"
                allowed.add((file, call))
            waits_for_ray = any(f"{name}(" in source for name in WAITS_FOR_RAY)
            assert not waits_for_ray or file in ("actors/waiting.py", "actors/actor.py"), path
    assert allowed == BOUNDED_ELSEWHERE.keys(), "an exception that is no longer needed goes"


@pytest.mark.parametrize("line", [
    "ray.get(ref)", "ray.get(ref, timeout=None)", "ray.wait(refs)", "from ray import get", "import ray as r",
    "thread.join()", "thread.join(None)", "event.wait()", "event.wait(timeout=None)", "lock.acquire()",
    "lock.acquire(True)", "process.wait(None)", "process.communicate()", "queue.get()", "queue.get(True)",
    "queue.get(block=True)", "future.result()", "future.result(timeout=None)", "future.exception()",
    "asyncio.run_coroutine_threadsafe(work, loop).result()", "subprocess.run(['sleep', '9'])",
    "subprocess.run(command, timeout=None)", "from subprocess import run", "aiohttp.ClientSession()",
    "aiohttp.ClientTimeout(total=None)", "aiohttp.ClientTimeout(connect=3)", "asyncio.wait(tasks)",
    "asyncio.wait_for(task, None)", "concurrent.futures.wait(tasks)", "for done in as_completed(tasks): pass",
    "dist.barrier()", "dist.init_process_group('gloo')", "dist.broadcast(x, 0)", "group.broadcast(x, 0).wait()",
    "fcntl.flock(file, fcntl.LOCK_EX)", "os.waitpid(pid, 0)", "select.select([s], [], [])", "socket.recv(9)",
    "socket.accept()", "requests.get(url)", "httpx.get(url)", "urllib.request.urlopen(url)", "run.finish()",
    "wandb.init()", "ray.init()", "ray.shutdown()", "ray.util.wait(refs)", "placement_group.wait()",
])  # fmt: skip
def test_waits_without_an_end_are_found(line):
    assert list(unbounded_waits(line))


@pytest.mark.parametrize("line", [
    "ray.get(ref, timeout=3)", "', '.join(names)", "thread.join(3)", "event.wait(3)", "names.get(key)",
    "queue.get(True, 3)", "queue.get(timeout=3)", "lock.acquire(timeout=3)", "future.result(3)", "d.get(key, None)",
    "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "os.waitpid(pid, os.WNOHANG)",
    "select.select([s], [], [], 3)", "aiohttp.ClientTimeout(total=60)", "asyncio.wait_for(task, 3)",
    "subprocess.run(command, timeout=3)", "import ray", "asyncio.wait(tasks, timeout=3)",
])  # fmt: skip
def test_waits_with_an_end_are_allowed(line):
    assert not list(unbounded_waits(line))


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
