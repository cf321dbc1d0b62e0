"""The one table of metric names: what `metrics.jsonl`, TensorBoard, W&B and the report call a number, and what it is.

`metrics.jsonl` has one row a train step; the `eval/` numbers are in `eval/step-NNNNNN.json`, and in the other two.
Names are `part/quantity_unit`. A name that ends in `*` stands for a family: which members there are depends on the
reward and on the judge.
"""

METRICS: dict[str, str] = {
    "step": "Train steps done; an evaluation carries the step after which it was made.",
    "weight_version": "Weight syncs so far: the version the engines hold after the step.",
    "reward/mean": "Mean total reward over the step's scored completions, after `reward.repeat_penalty`.",
    "reward/std": "Standard deviation of the total reward over the step's scored completions.",
    "reward/unscored": "Completions whose reward could not be computed; they leave their group.",
    "reward/*": "Mean of one component of the reward, e.g. `reward/structure`.",
    "reward_se/*": "Standard error of the `reward/` mean of the same name; a group counts as one observation.",
    "group/zero_variance_share": "Share of groups whose completions all earned the same: no signal.",
    "group/dropped": "Groups with too few scored completions to train on.",
    "completion/length_mean": "Tokens per completion.",
    "completion/distinct_2": "Distinct word pairs / word pairs of one poem a group; low if all prompts get one poem.",
    "completion/truncated_share": "Share of completions cut off at rollout.max_tokens.",
    "rollout/staleness_mean": "Versions between the weights that drew a completion and those it trains.",
    "rollout/tokens_per_s": "Completion tokens per second of the rollout phase, scoring included.",
    "train/loss": "The policy-gradient loss of the step's last optimizer step.",
    "train/grad_norm": "Global gradient norm before clipping.",
    "train/lr": "Learning rate.",
    "train/clip_fraction": "Share of tokens whose importance ratio was clipped.",
    "train/truncated_fraction": "Share of tokens whose importance ratio was above algorithm.max_importance_ratio.",
    "train/logprob_gap": "Mean |trainer - engine| log-probability, nats: both should agree.",
    "alarm/logprob_gap": "1 if the gap is too large, or has grown beyond what the run's first steps had; else 0.",
    "train/kl": "Divergence from the reference model, nats per token; 0 without one.",
    "train/num_loss_tokens": "Completion tokens trained on.",
    "train/num_forward_tokens": "Tokens forwarded by the trainer, prompts once per group.",
    "sync/num_bytes": "Weights moved to each engine.",
    "judge/*": "What judge clients counted, e.g. `judge/requests`; from 0 again after a resume or a worker's death.",
    "time/rollout_s": "Seconds the step waited for its groups to be drawn and scored.",
    "time/train_s": "Seconds of the train step.",
    "time/sync_s": "Seconds until every engine confirmed the new weights.",
    "eval/reward": "Mean total reward on held-out prompts, without repeat penalty; absent if nothing could be scored.",
    "eval/structure_mean": "Mean structure x legitimacy on held-out prompts, whatever the reward is.",
    "eval/structure_low": "Lower end of its 95 % bootstrap interval over prompts.",
    "eval/structure_high": "Upper end of its 95 % bootstrap interval over prompts.",
    "eval/strict_575": "Share of held-out poems that are exactly 5-7-5, and legitimate.",
    "eval/topic_mention": "Share of held-out poems that name their topic.",
    "eval/distinct_2": "Distinct word pairs / word pairs: falls when poems repeat each other.",
}


def describe_metric(name: str) -> str:
    """What a number of this name, or of its family, is. Raises KeyError for a name nobody documented."""
    return METRICS[name] if name in METRICS else METRICS[name.partition("/")[0] + "/*"]
