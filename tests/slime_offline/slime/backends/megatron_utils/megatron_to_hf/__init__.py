def convert_to_hf(args, model_name, name, param, quantization_config=None, transform_ue8m0=True):
    assert model_name == "qwen3config"
    if name.endswith("linear_qkv.weight"):
        path = "model.layers.0.self_attn"
        return [(f"{path}.{each}_proj.weight", part) for each, part in zip("qkv", param.chunk(3), strict=True)]
    return [("model.norm.weight", param)]
