"""Objective that is minimised: losses of arrays, and the objective that encodes a batch, scores it and compares."""

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
from train.objective.partition import Params, Part, Partition, Place, Structure, take_apart, temperature_name
from train.objective.states_batch import StatesBatch

__all__ = [
    "Encoded",
    "Metrics",
    "Objective",
    "Params",
    "Part",
    "Partition",
    "Place",
    "StatesBatch",
    "Structure",
    "TrainBatch",
    "contrastive",
    "distillation",
    "losses",
    "ranking_score",
    "start_temperatures",
    "take_apart",
    "temperature_name",
]
