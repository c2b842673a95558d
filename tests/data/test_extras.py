"""What the core promises without the extras, and what is said where one is missing."""

import subprocess
import sys

import pytest

EXTRAS = (
    "scipy",
    "pandas",
    "matplotlib",
    "sklearn",
    "statsmodels",
    "tqdm",
    "ipywidgets",
    "bokeh_sampledata",
)


def run(code):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_these_rooms_load_torch_and_numpy_alone():
    rooms = "data", "inference", "posterior", "progress"
    imports = "; ".join(f"import fractal_lib.{room}" for room in rooms)
    ours = [name for name in EXTRAS if name != "tqdm"]  # which torch itself may load
    loaded = run(f"import sys; {imports}; print([m for m in {ours} if m in sys.modules])")
    assert loaded == "[]"


BLOCKED = f"""
import sys
for name in {EXTRAS}:
    sys.modules[name] = None
import numpy as np
import torch
from fractal_lib.data import *
from fractal_lib.inference import *
from fractal_lib.posterior import *
"""

NEEDS = [
    ("co2()", "statsmodels"),
    ("digits()", "scikit-learn"),
    ("mri()", "matplotlib"),
    ("elevation()", "matplotlib"),
    ("ornstein_uhlenbeck(1, 5, 1.0)", "scipy"),
    ("mocap(__import__('torch').__file__)", "scipy"),
    ("glucose()", "bokeh_sampledata"),
    ("motorcycle()", "statsmodels"),
]


def test_a_missing_extra_is_named_in_one_sentence():
    calls = [call for call, _ in NEEDS]
    said = run(
        BLOCKED
        + f"""
for call in {calls!r}:
    try:
        eval(call)
    except ImportError as error:
        print(error)
"""
    ).splitlines()
    for (call, package), line in zip(NEEDS, said, strict=True):
        assert line == f"{call.partition('(')[0]}() needs {package}: pip install {package}"


def test_all_else_works_without_them():
    said = run(
        BLOCKED
        + """
sample = double_well(2, 5, 1.0)
data = Observations(sample.observed)
likelihood = LinearGaussianLikelihood(1, 1, 0.5)
model = LatentSDE(PriorSDE(1, 8), likelihood, LadderPosterior.of(data, 1, 8))
print(len(fit(model, data, TrainingPlan(2), progress=True)["nll"]), callable(scores))
"""
    )
    assert said == "2 True"


def test_scores_is_the_function():
    from fractal_lib.data import scores
    from fractal_lib.inference import scores as same

    assert scores is same and scores(0.0, 1.0, 0.0)["rmse"] == 0


@pytest.mark.parametrize("room", ["data", "inference", "posterior"])
def test_every_name_of_a_room_is_there(room):
    import importlib

    module = importlib.import_module(f"fractal_lib.{room}")
    assert all(hasattr(module, name) for name in module.__all__)
