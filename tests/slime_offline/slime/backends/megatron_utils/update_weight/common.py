def named_params_and_buffers(args, model, convert_to_global_name=True, translate_gpu_to_cpu=False):
    for name, param in model[0].named_parameters():
        yield f"module.module.decoder.{name}", param


def all_gather_param(name, param):
    return param.data
