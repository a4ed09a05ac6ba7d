"""Publishing: model cards with the figures of an evaluation, and uploads of folders to the Hugging Face hub."""

from smart_jax.publishing.card import write_card
from smart_jax.publishing.figures import BenchmarkFigures, Difference, Figures, Interval, read_figures
from smart_jax.publishing.push import push_folder

__all__ = [
    "BenchmarkFigures",
    "Difference",
    "Figures",
    "Interval",
    "push_folder",
    "read_figures",
    "write_card",
]
