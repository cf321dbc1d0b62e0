"""Your own functions and classes as text, so that they reach a container which has no file of yours."""

import base64
import sys
from typing import Any


def by_value(**things: object) -> str:
    """What `from_value` makes `things` from again, e.g. `by_value(reward=my_reward, rubric=MyRubric)`.

    Whatever their module, their code goes along; what they import must be installed where they go.
    """
    from ray import cloudpickle

    modules = {sys.modules[name] for thing in things.values() if (name := _module(thing)) in sys.modules}
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        return base64.b64encode(cloudpickle.dumps(things)).decode()
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def from_value(text: str) -> dict[str, Any]:
    """The things by name; nothing for an empty text."""
    from ray import cloudpickle

    things: dict[str, Any] = cloudpickle.loads(base64.b64decode(text)) if text else {}
    return things


def _module(thing: object) -> str:
    return getattr(thing, "__module__", type(thing).__module__)
