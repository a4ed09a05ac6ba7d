"""Any benchmark folder: one saved by `Benchmark.save`, or a BEIR folder (queries, corpus, qrels as jsonl and tsv).

    python -m eval.run --config configs/eval_beir_folder.py:path/to/folder
    python -m eval.run --config configs/eval_beir_folder.py:a,b --config.model=Qwen/Qwen3-VL-Embedding-2B

Prints the table of the rows pooled, late and hybrid (and BM25 where the folder has the pages' texts) and writes it,
its JSON and a plot to results/folder. Several folders, by commas, also give their average.
"""

from ml_collections import ConfigDict

from eval.benchmark import Benchmark
from eval.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The argument is `path`."""
    config = default_config()
    config.path = arg  # folders, separated by commas
    config.output = "results/folder"
    return config


def get_benchmarks(config: ConfigDict) -> list[Benchmark]:
    folders = [folder for folder in config.path.split(",") if folder]
    if not folders:
        raise ValueError("no benchmark folder: add --config.path=FOLDER")
    return [Benchmark.load(folder) for folder in folders]
