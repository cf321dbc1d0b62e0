from pathlib import Path

import torch


def load_checkpoint(ddp_model, optimizer, opt_param_scheduler, checkpointing_context, skip_load_to_model_and_opt):
    from slime.backends.megatron_utils.actor import get_args

    assert not get_args().finetune and not get_args().no_load_optim
    step = (Path(get_args().load) / "latest_checkpointed_iteration.txt").read_text()
    state = torch.load(Path(get_args().load) / f"iter_{int(step):07d}" / "state.pt", weights_only=True)
    ddp_model[0].load_state_dict(state)
    return int(step), 0
