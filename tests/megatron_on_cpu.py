"""Real Megatron on a CPU over gloo, as far as it goes without a GPU: our layer, and checkpoints with torch's Adam.

    python -m tests.megatron_on_cpu ...      in processes of their own: Megatron keeps its groups globally
"""

import contextlib
import json
import os
import sys
from argparse import Namespace

import torch
import torch.distributed as dist
from torch.nn.functional import silu

SHAPE = {"num_layers": 4, "hidden_size": 256, "ffn_hidden_size": 640, "num_attention_heads": 4, "num_query_groups": 2,
         "kv_channels": 64}
"""Of the bundled model."""
VOCABULARY = 3072
LENGTHS = (7, 12, 5)


def pretend_cuda():
    """Megatron asks for the current device and for a stream of random numbers; here the CPU's."""
    torch.cuda.current_device = lambda: "cpu"
    torch.cuda.synchronize = lambda *a: None
    from megatron.core.tensor_parallel import random as megatron_random

    megatron_random.CudaRNGStatesTracker.fork = lambda self, name="": contextlib.nullcontext()


def pretend_cuda_tensors():
    """Its optimizer makes tensors `on cuda`, and insists on them."""
    def on_cpu(make):
        def made(*args, **kwargs):
            if str(kwargs.get("device", "")).startswith("cuda"):
                kwargs["device"] = "cpu"
            return make(*args, **kwargs)

        return made

    for name in ("tensor", "zeros", "empty", "empty_like", "ones", "full"):
        setattr(torch, name, on_cpu(getattr(torch, name)))
    type_of = torch.Tensor.type
    torch.Tensor.type = lambda self, *a: type_of(self, *a) if a else type_of(self).replace("torch.", "torch.cuda.")
    torch.Tensor.cuda = lambda self, *a, **k: self


def join(rank, size, port, tensor_parallel=None):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=size)
    pretend_cuda()
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(tensor_parallel or size)


def make_model(size, sequence_parallel, dtype=torch.float32):
    from megatron.core.models.gpt import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    from actors.trainers.megatron_spec import get_spec

    off = ("bias_activation_fusion", "masked_softmax_fusion", "persist_layer_norm", "gradient_accumulation_fusion",
           "apply_rope_fusion", "bias_dropout_fusion", "add_bias_linear")
    config = TransformerConfig(
        **SHAPE, normalization="RMSNorm", layernorm_epsilon=1e-6, gated_linear_unit=True, activation_func=silu,
        qk_layernorm=True, attention_dropout=0.0, hidden_dropout=0.0, tensor_model_parallel_size=size,
        sequence_parallel=sequence_parallel, use_cpu_initialization=True, params_dtype=dtype, pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16, **dict.fromkeys(off, False),
    )
    spec = get_spec(Namespace(qk_layernorm=True), config)
    return GPTModel(
        config, spec, VOCABULARY, 512, share_embeddings_and_output_weights=True, position_embedding_type="rope",
        rotary_base=10_000,
    )


def packed():
    from megatron.core.packed_seq_params import PackedSeqParams

    starts = torch.tensor([0, 7, 19, 24], dtype=torch.int32)
    torch.manual_seed(0)
    tokens = torch.randint(10, 300, (sum(LENGTHS),))
    return tokens, PackedSeqParams(
        cu_seqlens_q=starts, cu_seqlens_kv=starts, max_seqlen_q=12, max_seqlen_kv=12, qkv_format="thd"
    )


def forward(model, tokens, packing):
    return model(input_ids=tokens[None], position_ids=None, attention_mask=None, labels=None, packed_seq_params=packing)


def copy_weights(model, source, rank, size):
    """Hugging Face weights into a rank's part of Megatron's model, by hand."""
    def part(tensor, dim):
        return tensor.chunk(size, dim)[rank]

    hidden, groups = SHAPE["hidden_size"], SHAPE["num_query_groups"]
    whole = {"layer_norm": {"linear_qkv": "input_layernorm", "linear_fc1": "post_attention_layernorm"}}
    for name, weight in model.named_parameters():
        if name.startswith("embedding"):
            made = part(source["model.embed_tokens.weight"], 0)
        elif name == "decoder.final_layernorm.weight":
            made = source["model.norm.weight"]
        else:
            layer, rest = name.removeprefix("decoder.layers.").split(".", 1)
            get = {key.removeprefix(f"model.layers.{layer}."): value for key, value in source.items()}
            attention = {each: get[f"self_attn.{each}_proj.weight"] for each in "qkvo"}
            if rest.endswith("layer_norm_weight"):
                made = get[f"{whole['layer_norm'][rest.split('.')[-2]]}.weight"]
            elif rest.endswith(("q_layernorm.weight", "k_layernorm.weight")):
                made = get[f"self_attn.{rest.split('.')[1][0]}_norm.weight"]
            elif rest.endswith("linear_qkv.weight"):
                heads = [attention[each].view(groups, -1, hidden) for each in "qkv"]
                made = part(torch.cat(heads, 1).reshape(-1, hidden), 0)
            elif rest.endswith("linear_proj.weight"):
                made = part(attention["o"], 1)
            elif rest.endswith("linear_fc2.weight"):
                made = part(get["mlp.down_proj.weight"], 1)
            else:
                made = torch.cat([part(get[f"mlp.{each}_proj.weight"], 0) for each in ("gate", "up")])
        weight.data.copy_(made.view_as(weight))


def compare(directory, rank, size, port, sequence_parallel):
    """Prints the largest differences of logits and of norms' gradients to `transformers`, one JSON line."""
    from transformers import AutoModelForCausalLM

    join(rank, size, port)
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    named = dict(theirs.named_parameters())
    mine = make_model(size, sequence_parallel)
    copy_weights(mine, {name: value.data for name, value in named.items()}, rank, size)
    tokens, packing = packed()
    logits = forward(mine, tokens, packing).reshape(len(tokens), -1)
    expected = torch.cat([theirs(each[None]).logits[0] for each in tokens.split(LENGTHS)])
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    found = {"logits": ((logits - expected.chunk(size, -1)[rank]).abs().max() / expected.abs().max()).item()}
    (logits * weight.chunk(size, -1)[rank]).sum().backward()
    (expected * weight).sum().backward()
    for ours, name in (
        ("decoder.layers.0.self_attention.linear_qkv.layer_norm_weight", "model.layers.0.input_layernorm.weight"),
        ("decoder.layers.1.mlp.linear_fc1.layer_norm_weight", "model.layers.1.post_attention_layernorm.weight"),
        ("decoder.layers.1.self_attention.q_layernorm.weight", "model.layers.1.self_attn.q_norm.weight"),
        ("decoder.final_layernorm.weight", "model.norm.weight"),
    ):
        gradient = dict(mine.named_parameters())[ours].grad
        marked = getattr(dict(mine.named_parameters())[ours], "sequence_parallel", False)
        if marked or "q_layernorm" in ours:  # what Megatron sums over the ranks
            dist.all_reduce(gradient)
        found[ours] = ((gradient - named[name].grad).abs().max() / named[name].grad.abs().max()).item()
    print(json.dumps(found))


def resume(directory, rank, size, port, tensor_parallel):
    """Two steps, saved; loaded into another model; a third step of both. Prints whether they are equal on this rank."""
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
    from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper
    from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy

    from actors.trainers.megatron_trainer import _begin_adam, _count_apart

    join(rank, size, port, tensor_parallel)
    pretend_cuda_tensors()
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    metadata = {"distrib_optim_sharding_type": "dp_reshardable", "singleton_local_shards": False,
                "chained_optim_avoid_prefix": True}

    def state(model, optimizer, is_loading):
        whole = metadata | {"dp_cp_group": group}
        model_state = model.module.module.sharded_state_dict(metadata=whole)
        return {"model": model_state,
                "optimizer": optimizer.sharded_state_dict(model_state, is_loading=is_loading, metadata=whole)}

    torch.manual_seed(1)
    first, others = make_trainable(tensor_parallel), make_trainable(tensor_parallel)
    for seed in (1, 2):
        take_step(*first, seed)
    strategy = TorchDistSaveShardedStrategy()
    strategy.thread_count = 1
    dist_checkpointing.save(state(*first, False), directory, strategy, content_metadata=metadata)
    _begin_adam(others[1])
    reading = FullyParallelLoadStrategyWrapper(get_default_load_sharded_strategy(directory), group)  # as slime does
    loaded = dist_checkpointing.load(state(*others, True), directory, reading)
    others[0].load_state_dict(loaded["model"])
    others[1].load_state_dict(loaded["optimizer"])
    _count_apart(others[1])
    for pair in (first, others):
        take_step(*pair, 3)
    pairs = zip(first[0].parameters(), others[0].parameters(), strict=True)
    steps = {float(each["step"]) for part in others[1].chained_optimizers for each in part.optimizer.state.values()}
    print(json.dumps({"equal": all(torch.equal(a, b) for a, b in pairs), "steps": sorted(steps)}))


def make_trainable(parts):
    from megatron.core import tensor_parallel
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.transformer.module import Float16Module

    model = make_model(parts, parts > 1, torch.bfloat16)
    for weight in model.parameters():
        tensor_parallel.set_defaults_if_not_set_tensor_model_parallel_attributes(weight)
    ddp = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
    wrapped = DistributedDataParallel(model.config, ddp, Float16Module(model.config, model))
    settings = OptimizerConfig(
        optimizer="adam", lr=1e-2, bf16=True, params_dtype=torch.bfloat16, use_distributed_optimizer=True, clip_grad=0.0
    )
    return wrapped, get_megatron_optimizer(settings, [wrapped])


def take_step(model, optimizer, seed):
    from megatron.core.distributed.finalize_model_grads import _allreduce_non_tensor_model_parallel_grads

    model.zero_grad_buffer()
    optimizer.zero_grad()
    logits = forward(model, *packed()).float()
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))).sum().backward()
    _allreduce_non_tensor_model_parallel_grads([model], model.config)  # copies forward the same: no more to reduce
    optimizer.step()


def main(what, directory, rank, size, port, more):
    rank, size, port = int(rank), int(size), int(port)
    if what == "compare":
        compare(directory, rank, size, port, more == "True")
    else:
        resume(directory, rank, size, port, int(more))


if __name__ == "__main__":
    main(*sys.argv[1:])
