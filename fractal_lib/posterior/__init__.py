"""From what was read to a posterior: heads for latent SDEs, and the latent SDEs themselves."""

from fractal_lib.posterior.adapter import LadderAffine
from fractal_lib.posterior.base import Posterior, TimeEmbedding
from fractal_lib.posterior.calibration import calibrate
from fractal_lib.posterior.elbo import ElboTerms, LatentSDE
from fractal_lib.posterior.features import DataPyramid
from fractal_lib.posterior.frames import observations_from_frame
from fractal_lib.posterior.heads import PosteriorAffine, UltimateFractalPosteriorAffine
from fractal_lib.posterior.ladder import LadderPosterior
from fractal_lib.posterior.likelihood import LinearGaussianLikelihood
from fractal_lib.posterior.marginals import CorrelatedMarginals, Marginals
from fractal_lib.posterior.observations import Observations
from fractal_lib.posterior.plan import TrainingPlan
from fractal_lib.posterior.prediction import Forecast
from fractal_lib.posterior.recurrent import RecurrentPosterior
from fractal_lib.posterior.saving import load_model, save_model
from fractal_lib.posterior.sde import KnownPrior, PriorSDE
from fractal_lib.posterior.splines import DataSplines
from fractal_lib.posterior.training import Diverged, evaluate, fit
from fractal_lib.posterior.views import Hiding

__all__ = [
    "CorrelatedMarginals",
    "DataPyramid",
    "DataSplines",
    "Diverged",
    "ElboTerms",
    "Forecast",
    "Hiding",
    "KnownPrior",
    "LadderAffine",
    "LadderPosterior",
    "LatentSDE",
    "LinearGaussianLikelihood",
    "Marginals",
    "Observations",
    "Posterior",
    "PosteriorAffine",
    "PriorSDE",
    "RecurrentPosterior",
    "TimeEmbedding",
    "TrainingPlan",
    "UltimateFractalPosteriorAffine",
    "calibrate",
    "evaluate",
    "fit",
    "load_model",
    "observations_from_frame",
    "save_model",
]
