import zlib


def gpu_tensor_hash(tensor):
    return zlib.crc32(tensor.contiguous().numpy().tobytes())
