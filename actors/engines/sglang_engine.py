"""The rollout engine of the cluster: slime's SGLangEngine, which controls a server, with generation added.

slime's trainers call its methods by name while weights are updated, so those stay in the default group of threads;
generation has a group of its own, and neither waits for the other.
"""

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import ray

from actors.engines.sglang_client import ServerGone, SglangClient, end_tokens
from actors.engines.sglang_server import SLOT_LOADER, slot_message
from rlhaiku.errors import ActorFailed
from rlhaiku.types import Group, GroupRequest

GENERATE = "generate"
"""The concurrency group of generation."""
CONTROL_THREADS = 8
"""Of the default group: calls of several trainer ranks, and questions of the driver beside them."""
GENERATE_THREADS = 4
"""At least as many as tiles are handed to an engine at once."""
FIRST_PORT, PORTS_PER_CARD = 24_000, 100
"""Engines of one node start at the same moment and look for free ports, as may those of another run on other cards:
each in the range of its card."""
GROUP_PORTS = 32
"""In a row, from the address of SGLang's own process group on."""


@dataclass(frozen=True, slots=True)
class SglangSpec:
    """Everything an engine needs to start, or to start again after it died."""

    args: Any
    """slime's arguments."""
    place: int
    """Among the engines of the run, from 0."""
    gpu_id: int
    """First GPU on its node, as the driver counts."""
    timeout_s: float
    """Longest wait for a group."""
    gpus: int = 1
    seed: int | None = None
    """For a server in deterministic mode."""


@dataclass(frozen=True, slots=True)
class HeldWeights:
    """What an engine says it holds."""

    weight_version: int
    """NO_VERSION before the first sync."""
    hashes: tuple[dict[str, str], ...] = field(default=())
    """By GPU: a checksum over every element of each of its tensors, by SGLang's name: SGLang's own, or after
    `take_slot` that of `weight_slots.hashes`."""


class Generation:
    """What this project adds to slime's engine."""

    def __init__(self, spec: SglangSpec) -> None:
        """Starts the server and returns when it answers; minutes on a fresh machine, which compiles kernels first."""
        super().__init__(spec.args, spec.place, base_gpu_id=spec.gpu_id, num_gpus_per_engine=spec.gpus)  # type: ignore[call-arg]
        slime: Any = self
        first = FIRST_PORT + PORTS_PER_CARD * spec.gpu_id
        host, port = slime._get_current_node_ip_and_free_port(first)
        _, nccl_port = slime._get_current_node_ip_and_free_port(port + 1)
        _, group_port = slime._get_current_node_ip_and_free_port(nccl_port + 1, GROUP_PORTS)
        slime.init(dist_init_addr=f"{host}:{group_port}", port=port, nccl_port=nccl_port, host=host)
        threading.Thread(target=_end_with, args=(slime.process,), name="server-watch", daemon=True).start()
        ends = end_tokens(spec.args.hf_checkpoint)
        self._client = SglangClient(slime.get_url(), spec.timeout_s, ends, spec.seed)

    @ray.method(concurrency_group=GENERATE)  # type: ignore[untyped-decorator]
    def generate(self, requests: Sequence[GroupRequest]) -> list[Group]:
        """The groups of requests, drawn together; ends this process if its server does not answer.

        Raises WeightMismatch for a version that this engine does not hold.
        """
        try:
            return self._client.generate(requests)
        except ServerGone as error:
            _end(f"the server is gone: {error}")
            raise

    def weight_version(self) -> int:
        """The version of the last sync; NO_VERSION before the first.

        Asked for where SGLang has it now: slime's own question gets a 404 since 0.5.17.
        """
        return self._client.weight_version()

    def take_slot(self, weight_version: int, file: Path) -> HeldWeights:
        """Has the server load what `fill_slot` of the rank on its card wrote, and says what it holds then.

        Called while no request is in flight.
        """
        slime: Any = self
        report = file.with_suffix(f".held-{weight_version}")
        slime.update_weights_from_tensor(
            [slot_message(file, report)], load_format=SLOT_LOADER, flush_cache=True, weight_version=str(weight_version)
        )
        held = json.loads(report.read_text())
        report.unlink()
        return HeldWeights(self.weight_version(), (held,))

    def held_weights(self) -> HeldWeights:
        """Version and checksums as the server counts them now; raises ActorFailed if it does not."""
        slime: Any = self
        answer = slime.check_weights("checksum")
        if not answer.get("success") or "ranks" not in answer:
            raise ActorFailed(f"SGLang must report checksums of its weights; it said {str(answer)[:300]}")
        return HeldWeights(self.weight_version(), tuple(dict(rank["checksums"]) for rank in answer["ranks"]))


def engine_class() -> type:
    """slime's engine with generation; imports slime, whose container has SGLang."""
    from slime.backends.sglang_utils.sglang_engine import SGLangEngine

    from actors.engines.sglang_server import prepare_process, share_of_free

    class Prepared(SGLangEngine):  # type: ignore[misc]
        """Starts its server as `sglang_server` has it."""

        def init(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
            prepare_process()
            slime: Any = self
            share = slime.args.sglang_mem_fraction_static  # of the whole card; these arguments are this process's own
            slime.args.sglang_mem_fraction_static = share_of_free(share, slime.base_gpu_id)
            super().init(*args, **kwargs)

    return type("SglangEngine", (Generation, Prepared), {})


def _end_with(server: Any) -> None:  # noqa: ANN401  (a multiprocessing process)
    """An actor without a server is of no use to anybody: its death is noticed, and it is replaced."""
    wait([server.sentinel])
    _end(f"the server process ended with exit status {server.exitcode}")


def _end(why: str) -> None:
    print(f"this engine ends, because {why}", flush=True)
    os._exit(1)
