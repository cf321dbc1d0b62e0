"""Parts of the installed slime that cannot be imported without SGLang or a GPU, compiled alone from its source."""

import ast
from pathlib import Path


def slime_root() -> Path:
    """The folder of the package `slime`."""
    import slime

    return Path(slime.__file__).parent


def function_of(file, name, namespace):
    """`Class.method` or `function` of a file of slime's, undecorated; `namespace`: what its body refers to."""
    tree = ast.parse((slime_root() / file).read_text())
    *owner, last = name.split(".")
    body = next(node.body for node in tree.body if getattr(node, "name", "") == owner[0]) if owner else tree.body
    node = next(node for node in body if getattr(node, "name", "") == last)
    node.decorator_list, node.returns = [], None
    for argument in (*node.args.args, *node.args.kwonlyargs):
        argument.annotation = None
    code = compile(ast.Module([node], []), f"slime/{file}", "exec")
    exec(code, namespace)
    return namespace[last]
