"""Retrieval on pages of the documentation installed with Python: docstrings typeset as images, and queries for them.

There are two kinds of queries:
  meaning  the summary line of a docstring; its page shows the rest, with the object's own name masked on both sides
  wording  5 to 8 consecutive words of the page, of which 25 % are dropped

    python -m recipes.tiny.pages pairs --out build/pages/train --height 128 --width 256 --count 4000
    python -m recipes.tiny.pages benchmark --out build/pages/wording --kind wording --height 128 --width 256

`pairs` writes training pairs in the layout and the columns of the ColPali training set, which `python -m train.data`
converts; `benchmark` writes a held-out benchmark that `Benchmark.load` opens. Neither the held-out modules nor any
near-duplicate of their docstrings are in the pairs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from recipes.tiny.canvas import STYLES, Canvas
from recipes.tiny.corpus import for_training, held_out
from recipes.tiny.held_out_pages import make_benchmark
from recipes.tiny.pairs import training_pairs, write_pairs
from recipes.tiny.queries import KINDS


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; None = the arguments of the process."""
    options = _parser().parse_args(arguments)
    canvas = Canvas(options.height, options.width, options.style)
    if options.what == "benchmark":
        made = make_benchmark(held_out(), options.kind, canvas, count=options.count, seed=options.seed)
        made.save(options.out)
        print(f"{options.out}: {len(made.queries)} queries, {len(made.corpus)} pages of held-out modules")
        return
    pairs = training_pairs(
        for_training(packages=options.packages),
        canvas,
        count=options.count,
        seed=options.seed,
        meaning=options.meaning,
        shuffled=options.shuffled,
    )
    print(f"{options.out}: {write_pairs(options.out, pairs)} pairs")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.tiny.pages", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("what", choices=("pairs", "benchmark"))
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--height", type=int, default=128, help="of a page, in pixels (default: %(default)s)")
    parser.add_argument("--width", type=int, default=256, help="of a page, in pixels (default: %(default)s)")
    parser.add_argument("--style", choices=STYLES, default="grid", help="how texts are set (default: %(default)s)")
    parser.add_argument("--count", type=int, default=500, help="pages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, default="wording", help="benchmark: of the queries")
    parser.add_argument("--meaning", type=float, default=0.0, help="pairs: share of queries that are summaries")
    parser.add_argument("--shuffled", type=float, default=0.0, help="pairs: share of pages of random words")
    parser.add_argument("--packages", action="store_true", help="pairs: installed packages too")
    return parser


if __name__ == "__main__":
    main()
