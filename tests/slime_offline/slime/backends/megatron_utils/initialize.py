import numpy as np


def init(args):
    assert np.__version__.startswith("1."), "Megatron does not support numpy 2.x"
    np.random.seed(args.seed)
