"""A trained model in one file: what its parts are made from, their parameters, and notes beside
them; no code.
"""

import os
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fractal_lib.attention.base import PATTERNS, ContextAttention
from fractal_lib.checks import as_tensor
from fractal_lib.posterior.base import TimeEmbedding
from fractal_lib.posterior.elbo import LatentSDE
from fractal_lib.posterior.files import (
    check_writable,
    first_difference,
    read_payload,
    write_payload,
)
from fractal_lib.posterior.heads import PosteriorAffine, UltimateFractalPosteriorAffine
from fractal_lib.posterior.ladder import LadderPosterior
from fractal_lib.posterior.likelihood import LinearGaussianLikelihood
from fractal_lib.posterior.recurrent import RecurrentPosterior
from fractal_lib.posterior.sde import PriorSDE

__all__ = ["load_model", "save_model"]

VERSION = 1  # of the file's form; a later one may be unreadable here

PARTS: tuple[type[nn.Module], ...] = (
    LatentSDE,
    PriorSDE,
    LinearGaussianLikelihood,
    LadderPosterior,
    RecurrentPosterior,
    PosteriorAffine,
    UltimateFractalPosteriorAffine,
    TimeEmbedding,
)
"""What `load_model` makes again; each has ``settings()``."""


def save_model(model: LatentSDE, file: str | os.PathLike, **extra: Any) -> None:
    """Write a trained model with all that it needs to predict on new series in a new process.

    Args:
        model: `LatentSDE`, in any precision, on any device.
        file: where to; its folder is made. It is written whole, or what was there is kept.
        extra: what belongs to it: ``plan`` (a `TrainingPlan`), ``scaling`` (mean and std by which
            the values were scaled, say), and anything else of numbers, words, tensors, arrays, and
            lists and dicts of these.

    A part is saved as its class's name and its ``settings()``: a dict of the arguments that make it
    again, numbers, words, None, lists of them, or parts. The library's parts have that method, a
    part of your own needs it. Of attentions those of `PATTERNS` with default settings are saved.

    Raises:
        TypeError: for a part that cannot be saved, such as a `KnownPrior`, which is made of
            functions; for extras that are not plain. OSError: if the file cannot be written.

    Complexity: that of writing the parameters. Source: chapter ``posterior/irregular``.

    >>> import tempfile
    >>> from fractal_lib.posterior import Observations
    >>> posterior = RecurrentPosterior(PosteriorAffine(latent_size=3, hidden_size=16), channels=2)
    >>> likelihood = LinearGaussianLikelihood(3, 2, noise=0.5)
    >>> model, folder = LatentSDE(PriorSDE(3, 16), likelihood, posterior), tempfile.mkdtemp()
    >>> save_model(model, f"{folder}/model.pt", scaling={"mean": [3.1, 0.2], "std": [1.5, 2.0]})
    >>> again, extra = load_model(f"{folder}/model.pt")
    >>> data, t = Observations(torch.randn(5, 41, 2)), torch.rand(1, 7)
    >>> bool((again.predict(data, [4], t)[0] == model.predict(data, [4], t)[0]).all())
    True
    >>> extra["scaling"]["std"]
    [1.5, 2.0]
    """
    if not isinstance(model, LatentSDE):
        raise TypeError(f"expected model as a LatentSDE, got {type(model).__name__}")
    payload = {
        "fractal_lib": VERSION,
        "model": _describe(model, "model"),
        "state": {name: part.detach().cpu() for name, part in model.state_dict().items()},
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
        "extra": {name: _plain(value, name) for name, value in extra.items()},
    }
    check_writable(Path(file))
    write_payload(payload, Path(file))


def load_model(
    file: str | os.PathLike,
    classes: Iterable[type[nn.Module]] = (),
    *,
    device: torch.device | str | None = None,
) -> tuple[LatentSDE, dict[str, Any]]:
    """What `save_model` wrote.

    Args:
        file: to be read; no code in it is run.
        classes: of parts of your own, which have ``settings()``.
        device: of the model; default the CPU, wherever it was trained.

    Returns:
        the model, in its own precision, and the extras by name: a plan as a dict, arrays as
        tensors. Random numbers to come are what they were.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is truncated, of another kind, of a newer version, or has a part
            of a class that is not known.

    Complexity: that of reading the parameters. Source: `save_model`.
    """
    found = read_payload(Path(file), "a model of save_model", {"fractal_lib"})
    if found["fractal_lib"] != VERSION:
        raise ValueError(
            f"{file} has version {found['fractal_lib']} of the form, this fractal_lib reads "
            f"{VERSION}: install the one that wrote it, or a newer one"
        )
    known = {part.__name__: part for part in (*PARTS, *classes)}
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        try:
            model = _build(found["model"], known)
        except (TypeError, KeyError) as error:  # a class has other arguments by now
            raise ValueError(f"{file} holds a part that cannot be made again: {error}") from error
    difference = first_difference(found["state"], model.state_dict())
    if difference:
        raise ValueError(f"{file} holds parameters of other shapes: {difference}")
    model.load_state_dict(found["state"], assign=True)  # with their dtype
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in found["frozen"])
    return model.to(device), found["extra"]


def _describe(part: nn.Module, where: str) -> dict[str, Any]:
    """Class and settings of a part, and the parts among the settings likewise."""
    if isinstance(part, ContextAttention) and not hasattr(part, "settings"):
        return {"pattern": _pattern(part, where)}
    settings = _settings(part, where)
    parts = {name: value for name, value in settings.items() if isinstance(value, nn.Module)}
    return {
        "class": type(part).__name__,
        "settings": {k: _plain(v, f"{where}.{k}") for k, v in settings.items() if k not in parts},
        "parts": {name: _describe(value, f"{where}.{name}") for name, value in parts.items()},
    }


def _settings(part: Any, where: str) -> dict[str, Any]:
    if hasattr(part, "settings"):
        return part.settings()
    if isinstance(part, LatentSDE):
        return {
            name: getattr(part, name) for name in ("prior", "likelihood", "posterior", "scaled")
        }
    raise TypeError(
        f"{where} cannot be saved: {type(part).__name__} has no settings() that make it again; "
        "save its state_dict, and build it in your code"
    )


def _pattern(attention: ContextAttention, where: str) -> str:
    """The name in `PATTERNS` of an attention with default settings."""
    plain = PATTERNS[attention.name]() if attention.name in PATTERNS else None
    # what it prints are its settings
    if plain is None or type(plain) is not type(attention) or repr(plain) != repr(attention):
        raise TypeError(
            f"{where} cannot be saved: expected an attention of PATTERNS with default settings, "
            f"got {' '.join(repr(attention).split())}"
        )
    return attention.name


def _build(found: dict[str, Any], known: dict[str, type[nn.Module]]) -> Any:
    if "pattern" in found:
        return PATTERNS[found["pattern"]]()
    name = found["class"]
    if name not in known:
        raise TypeError(f"the class {name} is not known, name it: load_model(file, [{name}])")
    parts = {key: _build(part, known) for key, part in found["parts"].items()}
    return known[name](**found["settings"], **parts)


def _plain(value: Any, name: str) -> Any:
    """The value in types that are read without running code."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, list | tuple):
        return [_plain(part, name) for part in value]
    if isinstance(value, dict) and all(isinstance(key, str | int) for key in value):
        return {key: _plain(part, f"{name}[{key!r}]") for key, part in value.items()}
    if hasattr(value, "__array__"):
        return as_tensor(value, name).clone()
    raise TypeError(
        f"{name} cannot be saved: expected numbers, words, tensors, arrays, or lists and dicts of "
        f"these, got {type(value).__name__}"
    )
