"""The library's layers: imports run one way, no circle, and every module says what it offers.

DESIGN.md says why. What counts is every import statement, at the head of a module or in a function.
"""

import ast
import importlib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "fractal_lib"
# from the lowest; a room imports from itself and from lower layers, not from its neighbours
LAYERS = [
    {"checks", "progress"},
    {"curves"},
    {"attention"},
    {"self_attention", "posterior"},
    {"reference", "fractal_lib"},  # the latter: `from fractal_lib import DenseAttention`
    {"inference", "distributed"},
    {"data", "plots", "explore"},
    {"benchmark"},
]
LAYER = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}


def modules(package):
    """Name -> path of every module; a package goes by its own name."""
    paths = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


def room(name):
    """`fractal_lib.curves.cantor` is in `curves`."""
    return name.split(".")[1] if "." in name else name


def graph(package):
    """Each module -> those of the library that it imports."""
    paths = modules(package)

    def targets(name, node):
        if isinstance(node, ast.Import):
            return {alias.name for alias in node.names}
        # from . import a, from .a import b: relative to the package that the module stands in
        inside = name if paths[name].name == "__init__.py" else name.rpartition(".")[0]
        base = ".".join(inside.split(".")[: len(inside.split(".")) - node.level + 1])
        source = ".".join(filter(None, [base * (node.level > 0), node.module]))
        return {
            full if (full := f"{source}.{alias.name}") in paths else source for alias in node.names
        }

    return {
        name: {
            target
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for target in targets(name, node)
            if target.split(".")[0] == package.name
        }
        for name, path in paths.items()
    }


def upward(imports):
    """Every import that does not run down."""
    return [
        f"{name} imports {target}"
        for name, targets in imports.items()
        for target in sorted(targets)
        if room(name) != room(target) and LAYER[room(target)] >= LAYER[room(name)]
    ]


def circle(imports):
    """The modules of one circle, if there is any."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def exports(path):
    """Whether the module has one `__all__` of its own, not two that may differ."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    targets = [node.targets[0] for node in body if isinstance(node, ast.Assign)]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return names.count("__all__") == 1


def test_every_room_has_its_layer():
    assert {room(name) for name in modules(PACKAGE)} <= set(LAYER)


def test_nothing_imports_upward():
    assert upward(graph(PACKAGE)) == []


def test_there_is_no_circle():
    assert circle(graph(PACKAGE)) == []


def test_every_module_says_what_it_offers():
    silent = [name for name, path in modules(PACKAGE).items() if not exports(path)]
    assert [name for name in silent if not name.endswith("__main__")] == []


def test_what_a_module_offers_is_there():
    for name in modules(PACKAGE):
        if not name.endswith("__main__"):
            module = importlib.import_module(name)
            offered = getattr(module, "__all__", [])
            missing = [entry for entry in offered if not hasattr(module, entry)]
            assert missing == [], name
            assert len(set(offered)) == len(offered), name


@pytest.mark.parametrize(
    ("module", "line", "found"),
    [
        ("curves/cantor.py", "from fractal_lib.attention.base import read", upward),
        ("curves/cantor.py", "import fractal_lib.attention", upward),
        ("curves/cantor.py", "from fractal_lib import DenseAttention", upward),
        ("curves/cantor.py", "def late():\n    from fractal_lib import attention", upward),
        ("curves/cantor.py", "from ..attention import read", upward),
        ("posterior/sde.py", "from fractal_lib.self_attention import blocks", upward),
        ("attention/base.py", "from .dense import DenseAttention", circle),
        ("curves/__init__.py", "from . import cantor", None),
    ],
)
def test_a_wrong_import_is_noticed(tmp_path, module, line, found):
    package = tmp_path / "fractal_lib"
    for path in modules(PACKAGE).values():
        copy = package / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    with (package / module).open("a") as file:
        file.write(f"\n\n{line}\n")
    before, after = graph(PACKAGE), graph(package)
    assert after != before
    for check in (upward, circle):
        assert (check(after) != check(before)) == (check is found)
