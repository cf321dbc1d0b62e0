def log(args, metrics, step_key):
    assert step_key in metrics
