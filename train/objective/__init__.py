"""What is minimised: losses of arrays, and the objective that encodes a batch, scores it and compares."""

from train.objective import losses
from train.objective.objective import (
    Encoded,
    Metrics,
    Objective,
    TrainBatch,
    contrastive,
    distillation,
    ranking_score,
    start_temperatures,
)
from train.objective.parameters import Params, Structure, take_apart

__all__ = [
    "Encoded",
    "Metrics",
    "Objective",
    "Params",
    "Structure",
    "TrainBatch",
    "contrastive",
    "distillation",
    "losses",
    "ranking_score",
    "start_temperatures",
    "take_apart",
]
