from datetime import timedelta

import torch.distributed as dist

TIMEOUT = timedelta(seconds=300)


def init_process_group(backend, init_method, world_size, rank, group_name):
    """A group beside the default one, whose members need not be in that."""
    assert backend == "gloo"
    host, port = init_method.removeprefix("tcp://").rsplit(":", 1)
    store = dist.TCPStore(host, int(port), world_size, rank == 0, TIMEOUT)
    return dist.ProcessGroupGloo(dist.PrefixStore(group_name, store), rank, world_size, TIMEOUT)
