import ray

NOSET_VISIBLE_DEVICES_ENV_VARS_LIST = ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]


def add_default_ray_env_vars(env_vars=None):
    return {"RAY_USE_UVLOOP": "0"} | (env_vars or {})


@ray.remote
class Lock:
    def __init__(self):
        self._locked = False

    def acquire(self):
        taken, self._locked = self._locked, True
        return not taken

    def release(self):
        assert self._locked
        self._locked = False
