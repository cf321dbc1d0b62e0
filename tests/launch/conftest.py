"""One stand-in of Modal for all tests that start something on it."""

import shutil
import socket
import sys
import tempfile
from pathlib import Path

import pytest

from tests.judge_server import ServerThread

VLLM = Path(__file__).parent / "vllm_stand_in.py"


@pytest.fixture(scope="session")
def modal_directory():
    """Short, because unix sockets lie in it."""
    directory = Path(tempfile.mkdtemp(prefix="rlm-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def offline(modal_directory):
    """Volumes are mounted below `vol` of its directory, which needs no root."""
    pytest.importorskip("modal", reason="needs the extra: pip install 'rlhaiku[modal]'")
    from tests.modal_offline.server import OfflineModal

    with OfflineModal(modal_directory, environment={"RLHAIKU_VOLUMES": str(modal_directory / "vol")}) as modal:
        yield modal


@pytest.fixture(scope="session")
def judge_server():
    """A judge on 127.0.0.1, for runs on the stand-in."""
    with ServerThread() as server:
        yield server


@pytest.fixture(scope="session")
def new_port():
    """Makes a port that nobody listens on, as text."""

    def new():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return str(probe.getsockname()[1])

    return new


@pytest.fixture(scope="session")
def vllm_on_path(tmp_path_factory):
    """A folder for PATH that has a `vllm`."""
    vllm = tmp_path_factory.mktemp("bin") / "vllm"
    vllm.write_text(f"#!/bin/sh\nexec {sys.executable} {VLLM} \"$@\"\n")
    vllm.chmod(0o755)
    return vllm.parent


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    """A run ends with its report, which takes longer than these runs; test_report.py and test_readme.py look at it."""
    monkeypatch.setattr("launch.local.try_report", lambda directory: "")
