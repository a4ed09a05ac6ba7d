"""Pages of any PDF with an outline: its entries are the queries, their pages the answers.

    python -m eval.run --config configs/eval_pdf.py --config.path=manual.pdf
    python -m eval.run --config configs/eval_pdf.py:manual.pdf --config.white_out=False --config.dpi=144

The heading is painted over on its page by default, so that the query is never read off the page letter by letter.
Prints the table of bm25, pooled, late and hybrid and writes it, its JSON and a plot to results/pdf. Several files,
separated by commas, or a folder of PDFs also give their average. One that cannot be read is named, and the others are
evaluated.
"""

from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from eval.benchmarks import Deferred
from eval.benchmarks.pdf import pdf_benchmark
from eval.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """Returns the settings; the argument is `path`."""
    config = default_config()
    config.path = arg  # PDFs, or folders of them, separated by commas
    config.dpi = 72  # of the page images: A4 is about 0.5 megapixels, 490 visual tokens
    config.white_out = True
    config.max_level = 99  # deepest outline level that is asked for; 0 = chapters only
    config.output = "results/pdf"
    return config


def get_benchmarks(config: ConfigDict) -> list[Deferred]:
    """Returns a benchmark of each PDF, which is opened when its turn comes."""
    paths = [Path(path) for path in config.path.split(",") if path]
    files = [file for path in paths for file in (sorted(path.glob("**/*.pdf")) if path.is_dir() else [path])]
    if not files:
        raise ValueError("no PDF: add --config.path=FILE.pdf, or a folder that holds some")
    how = {"dpi": config.dpi, "white_out": config.white_out, "max_level": config.max_level}
    return [Deferred(file.stem, partial(pdf_benchmark, file, **how)) for file in files]
