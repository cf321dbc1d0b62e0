"""Which kernels a card spends its time in, and how it does without ours and Liger's."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from actors import gpu_model
from actors.engines import graph_decoding
from actors.trainers import forward
from benchmarks.gpu.roofline import DEVICE


@contextmanager
def without_kernels() -> Iterator[None]:
    """Within, this process computes by torch alone; a graph that was recorded before goes on as it is."""
    with ExitStack() as stack:
        for module in (forward, graph_decoding):
            stack.enter_context(patch.object(module, "has_kernels", lambda: False))
        stack.enter_context(patch.object(gpu_model, "_is_for_liger", lambda tensor: False))
        yield


def print_kernels(work: Callable[[], object], rows: int) -> None:
    """Prints which kernels the device spends a call's time in."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA if DEVICE == "cuda" else ProfilerActivity.CPU]) as profiled:
        work()
    sort = "self_device_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
    print(profiled.key_averages().table(sort_by=sort, row_limit=rows, max_name_column_width=70))
