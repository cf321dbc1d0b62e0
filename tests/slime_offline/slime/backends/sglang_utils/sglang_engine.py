import json
import multiprocessing
import time
import urllib.error
import urllib.request

from sglang.srt.server_args import ServerArgs
from slime.ray.ray_actor import RayActor
from slime.record import started, switched


def launch_server_process(server_args):
    from sglang.srt.entrypoints.http_server import launch_server

    multiprocessing.set_start_method("spawn", force=True)
    server_args.host = server_args.host.strip("[]")
    process = multiprocessing.Process(target=launch_server, args=(server_args,))
    process.start()
    while True:
        try:
            with urllib.request.urlopen(f"http://{server_args.host}:{server_args.port}/health_generate", timeout=5):
                return process
        except OSError:
            assert process.is_alive(), "the server ended"
            time.sleep(0.1)


class SGLangEngine(RayActor):
    def __init__(self, args, rank, worker_type="regular", base_gpu_id=None, sglang_overrides=None,
                 num_gpus_per_engine=None):
        self.args, self.rank, self.base_gpu_id = args, rank, base_gpu_id

    def init(self, dist_init_addr, port, nccl_port, host=None, disaggregation_bootstrap_port=None, router_ip=None,
             router_port=None):
        if switched("fail-engine-start"):
            raise OSError("the card has no memory for it")
        self.server_host, self.server_port = host, port
        assert len({int(dist_init_addr.rsplit(":", 1)[1]), port, nccl_port}) == 3
        self.process = launch_server_process(ServerArgs(host=host, port=port))
        started("engine", self.rank, base_gpu_id=self.base_gpu_id, server_pid=self.process.pid)

    def _request(self, method, endpoint, payload=None):
        data = None if method == "GET" else json.dumps(payload or {}).encode()
        request = urllib.request.Request(
            f"{self.get_url()}/{endpoint}", data=data, method=method, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            said = response.read()
        return json.loads(said) if said else None

    def get_url(self):
        return f"http://{self.server_host}:{self.server_port}"

    def get_weight_version(self):
        return self._request("GET", "get_weight_version")["weight_version"]  # a 404 by now, as at SGLang's own server

    def health_generate(self, timeout=5.0):
        self._request("GET", "health_generate")
        return True

    def flush_cache(self):
        self._request("GET", "flush_cache")

    def pause_generation(self):
        self._request("POST", "pause_generation")

    def continue_generation(self):
        self._request("POST", "continue_generation")

    def check_weights(self, action):
        return self._request("POST", "weights_checker", {"action": action})

    def shutdown(self):
        self.process.kill()

    def update_weights_from_tensor(self, serialized_named_tensors, load_format=None, flush_cache=False,
                                   weight_version=None):
        payload = {"weight_version": weight_version, "load_format": load_format, "flush_cache": flush_cache}
        if load_format == "flattened_bucket":
            payload["weights"] = json.loads(serialized_named_tensors[0])
        else:
            payload["serialized_named_tensors"] = serialized_named_tensors
        return self._request("POST", "update_weights_from_tensor", payload)

    def init_weights_update_group(self, master_address, master_port, rank_offset, world_size, group_name, backend):
        return self._request("POST", "init_weights_update_group", {
            "master_address": master_address, "master_port": master_port, "rank_offset": rank_offset,
            "world_size": world_size, "group_name": group_name, "backend": backend,
        })

    def destroy_weights_update_group(self, group_name):
        return self._request("POST", "destroy_weights_update_group")

    def update_weights_from_distributed(self, names, dtypes, shapes, group_name, flush_cache=False,
                                        weight_version=None, load_format=None):
        return self._request("POST", "update_weights_from_distributed", {
            "names": names, "dtypes": [str(dtype).replace("torch.", "") for dtype in dtypes], "shapes": shapes,
            "group_name": group_name, "weight_version": weight_version,
        })
