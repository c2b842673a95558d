"""What pyproject.toml promises: torch and numpy are enough; a missing extra is named."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires

import pytest
import yaml
from environments import ROOT, Environment, working_tree
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from fractal_lib.benchmark.rivals import OUTSIDE

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CORE = ["checks", "progress", "curves", "attention", "self_attention", "posterior"]
# each would cost every user of the library its time
UNASKED = [
    "scipy",
    "pandas",
    "statsmodels",
    "sklearn",
    "matplotlib",
    "ipywidgets",
    "PIL",
    "tqdm",
    "sympy",
    "torch._dynamo",
    "fractal_lib.benchmark",
]
LOADED = f"""
import sys, torch, numpy
before = set(sys.modules)  # torch.hub takes tqdm where it finds it
import fractal_lib
print([m for m in {UNASKED} if m in set(sys.modules) - before])
"""

# Every module's docstrings, as pytest runs them; of a docstring that stops at a missing extra the
# rest cannot run. It prints {docstring: the line of its first failure}, and how many passed.
DOCTESTS = """
import doctest, importlib, json, pkgutil, sys, fractal_lib

class Quiet(doctest.DocTestRunner):
    def report_start(self, out, test, example): pass
    def report_success(self, out, test, example, got): pass
    def report_failure(self, out, test, example, got):
        failed.setdefault(test.name, f"expected {example.want!r}, got {got!r}")
    def report_unexpected_exception(self, out, test, example, error):
        failed.setdefault(test.name, f"{error[0].__name__}: {error[1]}")

failed, run = {}, 0
flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
for module in pkgutil.walk_packages(fractal_lib.__path__, "fractal_lib."):
    if module.name.split(".")[1] in CORE:
        for test in doctest.DocTestFinder().find(importlib.import_module(module.name)):
            run += bool(test.examples)
            Quiet(optionflags=flags).run(test, out=lambda text: None)
print(json.dumps([run, failed]))
"""

IMPORTS = """
import importlib, json, pkgutil, fractal_lib
found = {}
for module in pkgutil.walk_packages(fractal_lib.__path__, "fractal_lib."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except Exception as error:
            found[module.name] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""
# checks.optional writes it
SENTENCE = r"ImportError: .+ needs ([\w-]+): pip install \1"


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """torch, numpy and what they need; fractal_lib put in by `pip install .`."""
    folder = tmp_path_factory.mktemp("bare")
    environment = Environment(folder, ["torch", "numpy", "pip", "setuptools"])
    environment.before = environment.files()
    tree = working_tree(folder / "tree")
    environment.call("-m", "pip", "install", "-q", tree, folder=folder)
    return environment


def test_installing_leaves_torch_and_numpy_alone(bare):
    after = bare.files()
    assert {path: after.get(path) for path in bare.before} == bare.before
    new = {path.parts[0].partition("-")[0] for path in after.keys() - bare.before.keys()}
    assert new == {"fractal_lib"}
    assert {path.parts[0] for path in bare.before} & {"torch", "numpy"} == {"torch", "numpy"}


def test_what_is_no_module_comes_along(bare):
    installed = {p.relative_to(bare.site / "fractal_lib").as_posix() for p in _data(bare.site)}
    assert installed == {p.relative_to(ROOT / "fractal_lib").as_posix() for p in _data(ROOT)}
    assert "py.typed" in installed
    assert any(name.startswith("benchmark/results/") for name in installed)


def _data(root):
    files = [p for p in (root / "fractal_lib").rglob("*") if p.is_file()]
    return [p for p in files if p.suffix not in (".py", ".pyc")]


def test_torch_and_numpy_are_enough(bare, tmp_path):
    assert bare.run(LOADED, tmp_path) == "[]"


def test_importing_loads_nothing_unasked(tmp_path):
    """Here all of them are installed."""
    assert subprocess.check_output([sys.executable, "-c", LOADED], text=True).strip() == "[]"
    planted = LOADED.replace("import fractal_lib\n", "import fractal_lib, PIL, sympy\n")
    found = subprocess.check_output([sys.executable, "-c", planted], text=True).strip()
    assert found == "['PIL', 'sympy']"


def test_the_core_does_in_the_bare_environment_what_it_says(bare, tmp_path):
    run, failed = json.loads(bare.run(f"CORE = {CORE}\n{DOCTESTS}", tmp_path).split("\n")[-1])
    assert run > 50
    assert {name: line for name, line in failed.items() if not re.fullmatch(SENTENCE, line)} == {}


def test_a_missing_extra_is_named_in_one_sentence(bare, tmp_path):
    refused = json.loads(bare.run(IMPORTS, tmp_path))
    assert {name: line for name, line in refused.items() if not re.fullmatch(SENTENCE, line)} == {}
    assert {name.split(".")[1] for name in refused} <= {"plots", "benchmark"}
    calls = {
        "from fractal_lib.data import co2; co2()": "data",
        "from fractal_lib.data import digits; digits()": "data",
        "from fractal_lib.data import mri; mri()": "plot",
        "from fractal_lib import plots": "plot",
        "from fractal_lib.explore import explore; explore(lambda level: 0, alt='a')": "plot",
    }
    program = (
        f"for call in {list(calls)}:\n    try:\n        exec(call)\n        print('done')\n"
        "    except ImportError as error:\n        print(f'{type(error).__name__}: {error}')"
    )
    said = bare.run(program, tmp_path).split("\n")
    for (call, extra), line in zip(calls.items(), said, strict=True):
        match = re.fullmatch(SENTENCE, line)
        assert match, call
        assert match[1] in {Requirement(line).name for line in EXTRAS[extra]}


# ---- the lists agree -----------------------------------------------------------------------------


def listed(name):
    """Package -> its requirement, of a requirements file."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().split("\n")]
    found = [Requirement(line) for line in lines if line]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def promised():
    """Package -> the oldest version that pyproject.toml admits."""
    lines = [*PROJECT["dependencies"], *EXTRAS["data"], *EXTRAS["plot"], *EXTRAS["train"]]
    found = {}
    for requirement in map(Requirement, lines):
        (bound,) = requirement.specifier  # one lower bound, and nothing that would replace torch
        assert bound.operator == ">="
        found[canonicalize_name(requirement.name)] = Version(bound.version)
    return found


def test_torch_and_numpy_alone_are_required():
    assert [Requirement(line).name for line in PROJECT["dependencies"]] == ["torch", "numpy"]
    assert EXTRAS["all"] == ["fractal-lib[data,plot,train]"]
    assert set(EXTRAS) == {"data", "plot", "train", "all", "rivals"}


def test_rivals_from_outside_are_nobodys_need():
    """They are timed where they are installed; a row says where they are not."""
    rivals = {canonicalize_name(Requirement(line).name) for line in EXTRAS["rivals"]}
    asked = {canonicalize_name(name) for name in OUTSIDE.values()}
    assert asked | {"pykeops", "h-transformer-1d", "local-attention"} == rivals
    for name in ("requirements.txt", "constraints.txt", "oldest.txt"):
        assert not rivals & listed(name).keys(), name


def test_the_oldest_versions_promised_are_those_tested():
    tested = {
        name: next(iter(line.specifier))
        for name, line in listed("oldest.txt").items()
        if name in promised()
    }
    assert {name: Version(spec.version) for name, spec in tested.items()} == promised()
    assert {spec.operator for spec in tested.values()} == {"=="}


def test_what_make_installs_has_all_extras_and_is_pinned():
    wanted, pinned = listed("requirements.txt"), listed("constraints.txt")
    assert promised().keys() <= wanted.keys()
    assert wanted.keys() - pinned.keys() == {"torch"}
    for name, line in wanted.items():
        assert line.specifier or name != "torch"
    # and so is all that these need in turn, torch's own needs too
    for name in pinned:
        assert next(iter(pinned[name].specifier)).operator == "==", name


def test_the_version_is_one():
    import fractal_lib

    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    latest = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert {PROJECT["version"], fractal_lib.__version__, cff["version"], latest} == {"0.2.0"}
    assert requires("fractal-lib") is not None
