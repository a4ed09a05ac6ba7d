"""Held-out pages of the standard library's documentation, for the embedded default model.

    python -m eval.run --config configs/eval_tiny.py
    python -m eval.run --config configs/eval_tiny.py --config.adapter=build/demo/run/adapter

500 pages and 500 queries of modules that no training page comes from (`recipes.tiny.HELD_OUT_MODULES`), read
from the running Python: the same on every machine with the same Python version. "wording" asks with a span of the
page's words of which a quarter is dropped, drawn anew for each of `query_seeds`; "meaning" asks with the summary line
for the page without it. Chance is 1 / 500 = .002 hit@1.
"""

from ml_collections import ConfigDict

from eval.benchmarks import Benchmark
from eval.config import default_config
from recipes.tiny import MIN_FILL, Canvas, held_out, make_benchmark

FOR_EMBEDDED = True  # its pages are those of the embedded model


def get_config(arg: str = "128x256") -> ConfigDict:
    """Returns the settings; the argument is the size of the pages, HEIGHTxWIDTH in pixels."""
    height, _, width = arg.partition("x")
    config = default_config()
    config.height, config.width = int(height), int(width)
    config.style = "grid"
    config.pages = 500
    config.fill = MIN_FILL  # of a page, the least
    config.query_seeds = 3  # wording benchmarks
    config.meaning = True
    config.storage_dtype = "float32"  # a few megabytes
    config.output = f"results/tiny-{arg}"
    return config


def get_benchmarks(config: ConfigDict) -> list[Benchmark]:
    """Returns one wording benchmark per seed, then the one of meanings."""
    docstrings, canvas = held_out(), Canvas(config.height, config.width, config.style)
    size, options = f"{config.height}x{config.width}", {"count": config.pages, "fill": config.fill}
    made = [
        make_benchmark(docstrings, "wording", canvas, seed=seed, name=f"wording-{size}-seed{seed}", **options)
        for seed in range(config.query_seeds)
    ]
    if config.meaning:
        made.append(make_benchmark(docstrings, "meaning", canvas, name=f"meaning-{size}", **options))
    return made
