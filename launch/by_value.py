"""Your own functions and classes as text, so that they reach a container which has no file of yours."""

import base64
import sys
from typing import Any

from launch.resources import Resources
from rlhaiku.errors import BadInput


def by_value(**things: object) -> str:
    """What `from_value` makes `things` from again, e.g. `by_value(reward=my_reward, rubric=MyRubric)`.

    Whatever their module, their code goes along; what they import must be installed where they go. Raises BadInput if
    the image has another Python: compiled code means something else there.
    """
    _check_python(_python(), Resources.from_environment().python)
    from ray import cloudpickle

    modules = {sys.modules[name] for thing in things.values() if (name := _module(thing)) in sys.modules}
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        return f"{_python()} {base64.b64encode(cloudpickle.dumps(things)).decode()}"
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def from_value(text: str) -> dict[str, Any]:
    """The things by name; nothing for an empty text. Raises BadInput if they cannot be made here."""
    if not text:
        return {}
    made_by, _, pickled = text.partition(" ")
    _check_python(made_by, _python())
    from ray import cloudpickle

    try:
        things: dict[str, Any] = cloudpickle.loads(base64.b64decode(pickled))
    except Exception as error:  # whatever importing what they import raises
        said, remedy = f"{type(error).__name__}: {error}", "Use what the image has, or import it where it is needed."
        raise BadInput("what travels by value must find its imports", said, remedy) from None
    return things


def _check_python(here: str, there: str) -> None:
    if here != there:
        remedy = f"Start this from a Python {there}; if the image has another, set RLHAIKU_PYTHON to it."
        raise BadInput("functions travel by value between equal Pythons only", f"{here} here, {there} there", remedy)


def _python() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def _module(thing: object) -> str:
    return getattr(thing, "__module__", type(thing).__module__)
