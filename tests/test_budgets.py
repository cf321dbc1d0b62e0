"""Size budgets, set on the tail: it is the longest function that nobody dares to touch."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
STRICT = [path for top in ("rlhaiku", "actors", "launch") for path in sorted((ROOT / top).rglob("*.py"))]
LOOSE = [path for top in ("tests", "benchmarks") for path in sorted((ROOT / top).rglob("*.py"))]


def lines_of(node):
    """Lines of a definition, its docstring not counted."""
    first = node.body[0]
    doc = ast.get_docstring(node, clean=False)
    return node.end_lineno - node.lineno + 1 - (first.end_lineno - first.lineno + 1 if doc is not None else 0)


def nesting(node):
    """Deepest run of nested blocks; `elif` adds nothing, inner functions count on their own."""

    def below(child, parent, field):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            return 0
        alone_in_else = isinstance(parent, ast.If) and field == parent.orelse and len(field) == 1
        is_elif = alone_in_else and isinstance(child, ast.If)
        return (isinstance(child, BLOCKS) and not is_elif) + deepest(child)

    def deepest(parent):
        depths = [0]
        for _, value in ast.iter_fields(parent):
            children = value if isinstance(value, list) else [value]
            depths += [below(child, parent, value) for child in children if isinstance(child, ast.AST)]
        return max(depths)

    return deepest(node)


def definitions(paths, kind):
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, kind):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def arguments(function):
    every = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    return [argument for argument in every if argument.arg not in ("self", "cls")]


@pytest.mark.parametrize(("paths", "limit"), [(STRICT, 400), (LOOSE, 600)])
def test_files(paths, limit):
    assert not {path.name: n for path in paths if (n := path.read_text().count("\n")) > limit}


def test_functions():
    assert not {name: lines_of(f) for name, f in definitions(STRICT + LOOSE, FUNCTIONS) if lines_of(f) > 80}
    lengths = sorted(lines_of(f) for _, f in definitions(STRICT, FUNCTIONS))
    assert lengths[int(0.95 * (len(lengths) - 1))] <= 45


def test_classes():
    assert not {name: lines_of(c) for name, c in definitions(STRICT, ast.ClassDef) if lines_of(c) > 250}


def test_nesting():
    assert not {name: nesting(f) for name, f in definitions(STRICT, FUNCTIONS) if nesting(f) > 3}


def test_parameters():
    assert not {name: len(arguments(f)) for name, f in definitions(STRICT, FUNCTIONS) if len(arguments(f)) > 7}


def test_signatures_are_typed():
    untyped = [
        name
        for name, f in definitions(STRICT, FUNCTIONS)
        if any(a.annotation is None for a in arguments(f)) or (f.returns is None and f.name != "__init__")
    ]
    assert not untyped


def test_nesting_is_measured():
    source = "def f():\n  if a:\n    pass\n  elif b:\n    for x in y:\n      while z: pass\n"
    assert nesting(ast.parse(source).body[0]) == 3
