"""Recipe of the embedded model: pages typeset from docstrings, a reading warm-up, and contrastive training.

`python -m recipes.tiny.pages` makes training pairs and benchmarks, `python -m recipes.tiny.pretrain` the model.
"""

from recipes.tiny.canvas import STYLES, Canvas
from recipes.tiny.corpus import HELD_OUT_MODULES, TRAIN_MODULES, for_training, held_out
from recipes.tiny.docstrings import Docstring
from recipes.tiny.held_out_pages import MIN_FILL, make_benchmark
from recipes.tiny.pairs import training_pairs, write_pairs
from recipes.tiny.queries import KINDS, wording_run
from recipes.tiny.stages import ROOT, STAGES
from recipes.tiny.typeset import CELL_HEIGHT, CELL_WIDTH, grid_places

__all__ = [
    "CELL_HEIGHT",
    "CELL_WIDTH",
    "HELD_OUT_MODULES",
    "KINDS",
    "MIN_FILL",
    "ROOT",
    "STAGES",
    "STYLES",
    "TRAIN_MODULES",
    "Canvas",
    "Docstring",
    "for_training",
    "grid_places",
    "held_out",
    "make_benchmark",
    "training_pairs",
    "wording_run",
    "write_pairs",
]
