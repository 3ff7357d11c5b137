"""The library is built in floors: a module imports only from floors below its own, so it can be read from the ground up."""

import ast
from pathlib import Path

import ddlib

HOME = Path(ddlib.__file__).parent
FLOORS = [  # from the ground up; modules of one floor do not know each other
    (
        "config",
        "kernels",
        "locks",
        "meter",
    ),  # settings and chance; compiled code; one process at a time; what making costs
    (
        "store",
        "cluster",
        "shards",
        "published",
        "track",
    ),  # artefacts; Ray; several machines over one store; others' numbers; who watches
    ("results", "engine", "foreign", "keeper"),
    (
        "whiten",
        "augment",
        "networks",
        "flat",
        "smoothness",
        "unroll",
        "matching",
        "initial",
        "cost",
        "claims",
        "teaching",
        "scores",
    ),  # the mathematics
    ("reuse",),
    ("fused", "fit", "tables", "plots", "folders", "exchange"),
    ("data",),
    ("experts", "distil", "evaluate", "continual"),  # the stages
    ("measure", "counts", "studies", "condense", "album"),
    ("pipeline",),  # the stages joined with the store
    ("paper", "plan"),
    ("press", "trade", "upkeep", "play"),
    ("verify", "verbs", "book"),
    ("__main__",),
    ("__init__",),
]


def imported(file):
    """The modules of the library that `file` imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["ddlib" if node.level else "", node.module]))
            found = [f"{base}.{alias.name}" for alias in node.names] if base == "ddlib" else [base]
        else:
            continue
        yield from (name.split(".")[1] for name in found if name.startswith("ddlib."))


def floor(name):
    return next(i for i, names in enumerate(FLOORS) if name in names)


def test_every_module_has_a_floor():
    modules = {file.stem for file in HOME.glob("*.py")}
    listed = [name for names in FLOORS for name in names]
    assert not modules - set(listed), (
        f"without a floor: {sorted(modules - set(listed))}; give each its place in FLOORS"
    )
    assert len(listed) == len(set(listed))


def test_imports_go_down():
    wrong = [
        f"{file.stem} (floor {floor(file.stem)}) imports {name} (floor {floor(name)})"
        for file in sorted(HOME.glob("*.py"))
        for name in imported(file)
        if floor(name) >= floor(file.stem)
    ]
    assert not wrong, wrong


def test_the_parser_sees_imports():
    """Of a file known to have them, in both spellings, so that the test above cannot pass by blindness."""
    assert {"augment", "config", "fit", "flat", "matching", "unroll"} == set(
        imported(HOME / "distil.py")
    )
    assert {"config", "folders", "store", "whiten"} == set(imported(HOME / "data.py"))
