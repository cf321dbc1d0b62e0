"""Started by test_two_nodes.py: a run whose reward says on which node it was computed."""

import sys

import modal

from launch.by_value import by_value
from launch.cluster import app, train
from launch.cluster_run import summary_of
from rlhaiku import Prompt, Scored


def node_of(prompt: Prompt, text: str) -> Scored:
    import ray

    return Scored(float(text.count("e")), {"node": float(ray.util.get_node_ip_address().rsplit(".")[-1])})


if __name__ == "__main__":
    with modal.enable_output(), app.run():
        settings = f"data.path=bundled {sys.argv[1]}"
        print(summary_of(train.remote("laptop", settings, "two", own=by_value(reward=node_of))))
