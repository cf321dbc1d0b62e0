"""slime's updater for trainers and engines on different cards, over gloo, to our engines with slime's own HTTP methods.

Without Ray: a handle here is a thread pool around an object. The server stands in, but really joins the group.
"""

import json
import socket
import subprocess
import sys
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from actors.engines import sglang_engine, sglang_server
from actors.engines.sglang_engine import Generation, SglangSpec
from actors.trainers import megatron_trainer
from launch.ray_cluster import free_port
from tests.actors.real_slime.source import function_of
from tests.sglang_stand_in import checksum, held_hashes
from tests.slime_offline.slime.card import CardMemory

pytestmark = [pytest.mark.slime, pytest.mark.filterwarnings("ignore")]
ROOT = Path(__file__).parents[3]
SERVER = """
import sys
from aiohttp import web
from tests.sglang_stand_in import GlooStandIn
web.run_app(GlooStandIn().app(), host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""
METHODS = (
    "_make_request", "get_url", "flush_cache", "check_weights", "pause_generation", "continue_generation",
    "init_weights_update_group", "destroy_weights_update_group", "update_weights_from_distributed",
)  # fmt: skip
HEADS, KV_HEADS, SIZE, HIDDEN, FFN = 4, 2, 16, 32, 48
SHAPES = {
    "embedding.word_embeddings.weight": (128, HIDDEN),
    "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight": (HIDDEN,),
    "decoder.layers.0.self_attention.linear_qkv.weight": ((HEADS + 2 * KV_HEADS) * SIZE, HIDDEN),
    "decoder.layers.0.self_attention.linear_proj.weight": (HIDDEN, HEADS * SIZE),
    "decoder.layers.0.mlp.linear_fc1.layer_norm_weight": (HIDDEN,),
    "decoder.layers.0.mlp.linear_fc1.weight": (2 * FFN, HIDDEN),
    "decoder.layers.0.mlp.linear_fc2.weight": (HIDDEN, FFN),
    "decoder.final_layernorm.weight": (HIDDEN,),
}


class Handle:
    """`handle.method.remote(...)` in a thread of its own; what an actor's death looks like is not in it."""

    def __init__(self, held):
        self._held, self._threads = held, ThreadPoolExecutor(4)

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *args, **kwargs: self._threads.submit(
            getattr(self._held, name), *args, **kwargs
        ))


def get(futures):
    return [each.result(60) for each in futures] if isinstance(futures, list) else futures.result(60)


class Lock:
    taken = False

    def acquire(self):
        was_taken, self.taken = self.taken, True
        return not was_taken

    def release(self):
        assert self.taken
        self.taken = False


@pytest.fixture
def start_engine(tmp_path, monkeypatch):
    """An engine of ours over slime's methods, its server a process of its own."""
    import requests

    monkeypatch.setattr(sglang_engine, "_end_with", lambda server: None)
    names = {"requests": requests, "time": time, "NewConnectionError": ConnectionError, "logger": SimpleNamespace(
        info=print
    )}  # fmt: skip
    file, processes, engines = "backends/sglang_utils/sglang_engine.py", [], []

    class Slime:
        def __init__(self, args, rank, base_gpu_id, num_gpus_per_engine):
            self.args, self.node_rank = args, 0

        def init(self, dist_init_addr, port, nccl_port, host):
            self.server_host, self.server_port = host, port
            self.process = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], cwd=ROOT)
            processes.append(self.process)
            for _ in range(600):
                with socket.socket() as sock:
                    if sock.connect_ex((host, port)) == 0:
                        return
                time.sleep(0.1)

        def _get_current_node_ip_and_free_port(self, first, consecutive=1):
            return "127.0.0.1", free_port()

    for name in METHODS:
        setattr(Slime, name, function_of(file, f"SGLangEngine.{name}", names))
    engine_class = type("SglangEngine", (Generation, Slime), {})

    def start(place):
        engines.append(engine_class(SglangSpec(Namespace(hf_checkpoint=str(tmp_path)), place, place, 30.0)))
        return engines[-1]

    yield start
    for engine in engines:
        engine._client.close()
    for process in processes:
        process.kill()
        process.wait(30)


@pytest.fixture
def updater(tmp_path, monkeypatch):
    """slime's, of a trainer of one rank with a layer of its own."""
    pytest.importorskip("megatron.training.arguments", exc_type=ImportError)
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.transformer.transformer_config import TransformerConfig
    from slime.backends.megatron_utils.update_weight import update_weight_from_distributed as module
    from slime.utils.distributed_utils import init_gloo_group

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    init_gloo_group()
    services = SimpleNamespace(services=SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1"))
    monkeypatch.setattr(module, "ray", SimpleNamespace(get=get, _private=services))
    monkeypatch.setattr(module, "accelerator", SimpleNamespace(weight_update_backend=lambda: "gloo"))
    weights = {
        f"module.module.{name}": torch.nn.Parameter(torch.randn(shape).bfloat16()) for name, shape in SHAPES.items()
    }
    for weight in weights.values():
        weight.tensor_model_parallel = False
    config = TransformerConfig(num_layers=1, hidden_size=HIDDEN, num_attention_heads=HEADS)
    model = SimpleNamespace(config=config, named_parameters=weights.items, named_buffers={}.items)
    args = Namespace(
        num_experts=None, update_weight_buffer_size=8192, num_attention_heads=HEADS, num_query_groups=KV_HEADS,
        kv_channels=SIZE, hidden_size=HIDDEN, vocab_size=128, q_lora_rank=None, rollout_num_gpus_per_engine=1,
    )  # fmt: skip
    yield module.UpdateWeightFromDistributed(args, [model], None, model_name="qwen3config", quantization_config=None)
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def exported(updater):
    from slime.backends.megatron_utils.megatron_to_hf import convert_to_hf

    named = {}
    for name, weight in updater.model[0].named_parameters():
        named |= dict(convert_to_hf(updater.args, updater.model_name, name, weight.data))
    return held_hashes(named)


def test_slimes_update_reaches_our_engines_to_the_bit_and_a_successor_too(updater, start_engine):
    engines, lock = [start_engine(0), start_engine(1)], Lock()

    def connect():
        counts = [1] * len(engines)
        updater.connect_rollout_engines([Handle(each) for each in engines], Handle(lock), engine_gpu_counts=counts)

    def assert_held(version):
        expected = exported(updater)
        assert len(expected) == 8
        for engine in engines:
            held = engine.held_weights()
            assert held.weight_version == version
            assert {name: held.hashes[0].get(name) for name in expected} == expected

    connect()
    updater.update_weights()
    assert_held(1)
    engines[1] = start_engine(1)
    for _, weight in updater.model[0].named_parameters():
        weight.data += 1
    connect()  # the old group is given up first
    updater.update_weights()
    assert_held(2)
    assert not lock.taken


def test_memory_that_stays_open_holds_what_slime_would_send(updater, tmp_path, monkeypatch):
    """Through slime's own name maps; a mapped file stands in for the card's memory."""
    for module in (megatron_trainer, sglang_server):
        monkeypatch.setattr(module, "DeviceWeightSlots", CardMemory)
    trainer = megatron_trainer.Training()
    trainer.args, trainer.model, trainer.weight_updater, trainer._slot = updater.args, updater.model, updater, None
    expected, file, report = exported(updater), tmp_path / "card-0", tmp_path / "held"
    sent = trainer.fill_slot(file)
    own = {name: torch.zeros_like(tensor) for name, tensor in CardMemory.open(file).views(0).items()}
    engine = SimpleNamespace(named_parameters=own.items)
    for _ in range(2):
        sglang_server.load_slot(engine, [(str(each), torch.empty(0)) for each in (file, report)])
        assert json.loads(report.read_text()) == sent.hashes
        assert {name: checksum(tensor) for name, tensor in own.items()} == expected and len(expected) == 8
        for _, weight in updater.model[0].named_parameters():
            weight.data += 1
        assert exported(updater) != expected
        before, sent = sent, trainer.fill_slot(file)
        assert all(sent.hashes[name] != value for name, value in before.hashes.items())
        expected = exported(updater)
