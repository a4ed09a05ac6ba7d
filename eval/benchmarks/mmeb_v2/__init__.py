"""MMEB-V2 (arXiv:2507.04590): 36 image, 18 video and 24 visual-document tasks as a table, and a loader per layout."""

from eval.benchmarks.mmeb_v2.loaders import lacking, load
from eval.benchmarks.mmeb_v2.table import MODALITIES, TASKS, Task, groups, select

__all__ = ["MODALITIES", "TASKS", "Task", "groups", "lacking", "load", "select"]
