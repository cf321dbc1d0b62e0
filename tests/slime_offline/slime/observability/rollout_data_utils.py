import torch


def tensorize_rollout_data_for_training(rollout_data):
    for key in ("tokens", "loss_masks", "rollout_log_probs"):
        rollout_data[key] = [torch.as_tensor(value) for value in rollout_data[key]]
    rollout_data["rollout_mask_sums"] = torch.tensor(rollout_data["rollout_mask_sums"])
