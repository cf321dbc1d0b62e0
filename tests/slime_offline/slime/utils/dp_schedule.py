def build_dp_schedule(args, train_parallel_config, total_lengths, *, global_batch_size, rollout_indices):
    """Every rank takes each n-th sample, one a micro-batch; ranks need equally many micro-batches."""
    size = train_parallel_config["dp_size"]
    partitions = [list(range(rank, len(total_lengths), size)) for rank in range(size)]
    count = min(map(len, partitions))
    micro_batches = [[[i] for i in range(count - 1)] + [list(range(count - 1, len(part)))] for part in partitions]
    return partitions, micro_batches, [count], [global_batch_size]
