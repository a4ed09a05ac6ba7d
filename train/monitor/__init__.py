"""Monitor of a run: log, speed, progress, a search of the held-out split; and what ends it early."""

from train.monitor.guards import LossGuard, StopRequest
from train.monitor.heldout import METRICS, SCORES, HeldOut, ranking_metrics
from train.monitor.metrics_log import MetricsLog, read_metrics
from train.monitor.progress import Progress, announce, format_table
from train.monitor.tensorboard import Sample
from train.monitor.throughput import Cost, Throughput, memory, peak_flops, training_cost
from train.monitor.wandb_log import WandbLog, import_wandb

__all__ = [
    "METRICS",
    "SCORES",
    "Cost",
    "HeldOut",
    "LossGuard",
    "MetricsLog",
    "Progress",
    "Sample",
    "StopRequest",
    "Throughput",
    "WandbLog",
    "announce",
    "format_table",
    "import_wandb",
    "memory",
    "peak_flops",
    "ranking_metrics",
    "read_metrics",
    "training_cost",
]
