"""Knows every flag it is given: which of them slime knows is tested against slime itself."""

import argparse
import ast
import sys

DEFAULTS = {"sglang_router_ip": None, "sglang_router_port": None, "use_kl_loss": False, "kl_coef": 0.0,
            "colocate": False, "rollout_external": False}


def parse_args(add_custom_arguments=None):
    parser = argparse.ArgumentParser()
    tokens, index = sys.argv[1:], 0
    while index < len(tokens):
        values = 0
        while index + values + 1 < len(tokens) and not tokens[index + values + 1].startswith("--"):
            values += 1
        kind = {0: {"action": "store_true"}, 1: {"type": _value}}.get(values, {"nargs": values})
        parser.add_argument(tokens[index], **kind)
        index += values + 1
    parser.set_defaults(**DEFAULTS)
    args = parser.parse_args(tokens)
    args.world_size = args.actor_num_nodes * args.actor_num_gpus_per_node
    return args


def _value(text):
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
