"""Read-only once it is made, as SGLang's own."""


class ServerArgs:
    def __init__(self, **fields):
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name, value):
        raise AttributeError(f"server_args.{name} assigned after resolution")
