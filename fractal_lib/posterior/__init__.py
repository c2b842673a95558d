"""From what was read to a posterior: heads for latent SDEs, and the latent SDEs themselves."""

from fractal_lib.posterior.context import Observations
from fractal_lib.posterior.generative import KnownPrior, LinearObservation, PriorSDE
from fractal_lib.posterior.heads import Paths, PosteriorAffine, UltimateFractalPosteriorAffine
from fractal_lib.posterior.ladder import DataPyramid, LadderPosterior
from fractal_lib.posterior.posteriors import Clock, Posterior, RecurrentPosterior
from fractal_lib.posterior.sde_matching import LatentSDE, Terms
from fractal_lib.posterior.training import Diverged, Plan, evaluate, fit

__all__ = [
    "Clock", "DataPyramid", "Diverged", "KnownPrior", "LadderPosterior", "LatentSDE", "LinearObservation",
    "Observations", "Paths", "Plan", "Posterior", "PosteriorAffine", "PriorSDE", "RecurrentPosterior", "Terms",
    "UltimateFractalPosteriorAffine", "evaluate", "fit",
]  # fmt: skip
