"""A trained model in a file: the same predictions in another process; sentences for the rest."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from fractal_lib.attention import PATTERNS, FractalAttention, MixtureAttention, WindowAttention
from fractal_lib.posterior import (
    KnownPrior,
    LadderPosterior,
    LatentSDE,
    LinearGaussianLikelihood,
    Observations,
    PosteriorAffine,
    PriorSDE,
    RecurrentPosterior,
    TimeEmbedding,
    TrainingPlan,
    UltimateFractalPosteriorAffine,
    files,
    fit,
    load_model,
    save_model,
)

DATA = Observations(torch.randn(6, 30, 2, generator=torch.Generator().manual_seed(0)))
HEADS = {name: lambda pattern=pattern: pattern() for name, pattern in PATTERNS.items()}


def build(head=None, **options):
    """Everything away from its default, and every parameter at random."""
    torch.manual_seed(0)
    head = PosteriorAffine(3, 8, init_logstd=-1.0) if head is None else head
    model = LatentSDE(
        PriorSDE(3, 8, TimeEmbedding([0.5, 0.1], harmonics=2)),
        LinearGaussianLikelihood(3, 2, 0.3, learn_noise=True),
        RecurrentPosterior(head, 2, **options),
        scaled=False,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def assert_same(model, again):
    assert repr(model) == repr(again)
    for (name, p), (other, q) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == other and p.dtype == q.dtype and torch.equal(p, q), name
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert p.requires_grad == q.requires_grad
    t = torch.rand(2, 7, dtype=torch.float64)
    for one, other in zip(
        model.predict(DATA, [0, 4], t), again.predict(DATA, [0, 4], t), strict=True
    ):
        assert torch.equal(one, other)


MODELS = {
    "plain": lambda: build(),
    "gaps, two directions": lambda: build(gaps=True, bidirectional=True),
    "combined": lambda: build(UltimateFractalPosteriorAffine(3, 8)),
    "combined, broad": lambda: build(UltimateFractalPosteriorAffine(3, 8, narrow=False)),
    "float64": lambda: build().double(),
    "frozen": lambda: build().requires_grad_(False),
    **{
        name: lambda make=make: build(PosteriorAffine(3, 8, make())) for name, make in HEADS.items()
    },
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_model_is_read_as_it_was_written(make, tmp_path):
    model = make()
    save_model(model, tmp_path / "new" / "model.pt")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again, extra = load_model(tmp_path / "new" / "model.pt")
    assert torch.equal(torch.rand(3), expected)  # nothing random was used up
    assert extra == {}
    assert_same(model, again)


@pytest.mark.parametrize("gaps", [False, True])
def test_the_ladder_posterior_is_read_as_it_was_written(gaps, tmp_path):
    model = build()
    sizes = dict(latent_size=3, hidden_size=8, channels=2, n=30)
    embedding = TimeEmbedding([0.5])
    model.posterior = LadderPosterior(**sizes, levels=4, gaps=gaps, time_embedding=embedding)
    torch.nn.init.normal_(model.posterior.net[-1].weight)
    save_model(model, tmp_path / "model.pt")
    assert_same(model, load_model(tmp_path / "model.pt")[0])


FRESH = """
import sys, torch
from fractal_lib.posterior import Observations, load_model
model, extra = load_model(sys.argv[1])
assert "fractal_lib.benchmark" not in sys.modules
values, t = torch.load(sys.argv[2])
data = Observations((values - extra["scaling"]["mean"]) / extra["scaling"]["std"])
torch.save([model.predict(data, [1], t), extra["plan"]], sys.argv[3])
"""


def test_a_new_process_predicts_on_new_series(tmp_path):
    plan, model = TrainingPlan(steps=3, ema=0.9), build(bidirectional=True)
    fit(model, DATA, plan)
    mean, std = np.array([3.0, -1.0], dtype=np.float32), np.array([2.0, 0.5], dtype=np.float32)
    save_model(model, tmp_path / "model.pt", scaling={"mean": mean, "std": std}, plan=plan)
    values, t = torch.randn(2, 50, 2), torch.rand(1, 9, dtype=torch.float64)
    torch.save((values * torch.from_numpy(std) + torch.from_numpy(mean), t), tmp_path / "new.pt")
    names = [str(tmp_path / name) for name in ("model.pt", "new.pt", "out.pt")]
    done = subprocess.run([sys.executable, "-c", FRESH, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    got, again = torch.load(tmp_path / "out.pt")
    assert TrainingPlan(**again) == plan
    for one, other in zip(got, model.predict(Observations(values), [1], t), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)  # scaled there and back


def test_extras_are_plain(tmp_path):
    given = {
        "numbers": [1, 2.5, True, None, (3, np.float32(0.5))],
        "words": {"unit": "ppm", 1: "one"},
        "array": np.arange(3.0),
        "frame": pd.Series([1.0, 2.0]),
        "tensor": torch.ones(2, requires_grad=True),
    }
    save_model(build(), tmp_path / "model.pt", **given)
    extra = load_model(tmp_path / "model.pt")[1]
    assert extra["numbers"] == [1, 2.5, True, None, [3, 0.5]] and extra["words"] == given["words"]
    assert extra["array"].tolist() == [0, 1, 2] and extra["frame"].tolist() == [1, 2]
    assert extra["tensor"].tolist() == [1, 1] and not extra["tensor"].requires_grad


class Shifted(PriorSDE):
    """A part of the user's own."""

    def __init__(self, latent_size, hidden_size, shift):
        super().__init__(latent_size, hidden_size)
        self.shift = shift

    def settings(self):
        return {"latent_size": 3, "hidden_size": 8, "shift": self.shift}


def test_a_part_of_the_users_own_is_named_to_be_read(tmp_path):
    model = build()
    model.prior = Shifted(3, 8, shift=2.5)
    save_model(model, tmp_path / "model.pt")
    again, _ = load_model(tmp_path / "model.pt", classes=[Shifted])
    assert again.prior.shift == 2.5
    assert_same(model, again)
    with pytest.raises(ValueError, match=r"the class Shifted is not known, name it: load_model"):
        load_model(tmp_path / "model.pt")


def known_prior():
    model = build()
    model.prior = KnownPrior(lambda z, t: -z, lambda z, t: 1.0, [0.0] * 3, [1.0] * 3)
    return model


CANNOT = {
    "functions": (known_prior, {}, "model.prior cannot be saved: KnownPrior has no settings"),
    "a setting": (
        lambda: build(PosteriorAffine(3, 8, FractalAttention(3))),
        {},
        "model.posterior.head.attention cannot be saved: .* got FractalAttention.depth=3",
    ),
    "a mixture": (
        lambda: build(PosteriorAffine(3, 8, MixtureAttention(WindowAttention()))),
        {},
        "expected an attention of PATTERNS with default settings, got MixtureAttention",
    ),
    "no model": (lambda: torch.nn.Linear(1, 1), {}, "expected model as a LatentSDE, got Linear"),
    "a function": (build, {"scale": print}, "scale cannot be saved: expected numbers, words"),
    "keys": (build, {"scale": {(1, 2): 3}}, "scale cannot be saved: .* got dict"),
    "words in an array": (
        build,
        {"scale": [np.array(["a"])]},
        "scale must be a tensor or an array",
    ),
}


@pytest.mark.parametrize(("make", "extra", "words"), CANNOT.values(), ids=CANNOT)
def test_what_cannot_be_saved_is_said_and_nothing_is_written(make, extra, words, tmp_path):
    with pytest.raises(TypeError, match=words) as told:
        save_model(make(), tmp_path / "model.pt", **extra)
    assert "\n" not in str(told.value) and not [*tmp_path.iterdir()]


def test_a_file_that_is_damaged_or_another_is_refused(tmp_path):
    file = tmp_path / "model.pt"
    save_model(build(), file)
    whole = file.read_bytes()
    cut = [whole[: int(len(whole) * share)] for share in (0, 0.001, 0.3, 0.7, 0.999)]
    for damaged in (*cut, b"words", b"PK"):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model.pt as a model of save_model, got") as told:
            load_model(file)
        assert "\n" not in str(told.value)
    model = build()
    fit(model, DATA, TrainingPlan(1), checkpoint=tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"run.pt as a model of save_model, got a file of another"):
        load_model(tmp_path / "run.pt")
    save_model(model, file)
    with pytest.raises(ValueError, match=r"model.pt as a checkpoint of fit, got a file of another"):
        fit(model, DATA, TrainingPlan(1), checkpoint=file)
    with pytest.raises(FileNotFoundError, match=r"none.pt"):
        load_model(tmp_path / "none.pt")


SPOILT = {
    "newer": (lambda saved: saved.update(fractal_lib=99), "has version 99 of the form, this"),
    "settings": (
        lambda saved: saved["model"]["parts"]["prior"]["settings"].update(colour=3),
        "a part that cannot be made again: .*colour",
    ),
    "shapes": (
        lambda saved: saved["model"]["parts"]["prior"]["settings"].update(hidden_size=9),
        r"parameters of other shapes: prior.inner \(2, 3, 8\), not \(2, 3, 9\)",
    ),
}


@pytest.mark.parametrize(("spoil", "words"), SPOILT.values(), ids=SPOILT)
def test_a_file_of_another_version_is_refused(spoil, words, tmp_path):
    save_model(build(), file := tmp_path / "model.pt")
    saved = torch.load(file, weights_only=True)
    spoil(saved)
    torch.save(saved, file)
    with pytest.raises(ValueError, match=words):
        load_model(file)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_it_is_written_whole_or_not_at_all(error, tmp_path, monkeypatch):
    file = tmp_path / "model.pt"
    save_model(build(), file, note="first")

    def fill(payload, to):
        to.write_bytes(b"half")
        raise error

    monkeypatch.setattr(files.torch, "save", fill)
    with pytest.raises(type(error)):
        save_model(build(), file, note="second")
    monkeypatch.undo()
    assert load_model(file)[1] == {"note": "first"}
    assert [f.name for f in tmp_path.iterdir()] == ["model.pt"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"cannot write .*folder: it is a folder"):
        save_model(build(), tmp_path / "folder")
