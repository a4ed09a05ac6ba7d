"""Any benchmark folder: one in BEIR layout (queries, corpus and qrels), or one saved by `Benchmark.save`.

    python -m eval.run --config configs/beir_folder.py --config.path=scifact --config.model=MODEL
    python -m eval.run --config configs/beir_folder.py --config.path=fever --config.split=dev
    python -m eval.run --config configs/beir_folder.py:a,b                   # several folders, and their average

BEIR's zips are read unpacked, the hub's copies as `hf download --repo-type dataset mteb/scifact --local-dir scifact`
leaves them; `eval/benchmarks/beir.py` has the layouts. Relevance may be graded. Prints the table of pooled, late and
hybrid, and of BM25 on the documents' texts, and writes it, its JSON and a plot to results/folder. BEIR reports nDCG@10.
"""

from ml_collections import ConfigDict

from eval.benchmarks import Benchmark
from eval.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """Returns the settings; the argument is `path`."""
    config = default_config()
    config.path = arg  # folders, separated by commas
    config.split = "test"  # of the judgements
    config.output = "results/folder"
    return config


def get_benchmarks(config: ConfigDict) -> list[Benchmark]:
    """Returns the benchmark of each folder."""
    folders = [folder for folder in config.path.split(",") if folder]
    if not folders:
        raise ValueError("no benchmark folder: add --config.path=FOLDER")
    return [Benchmark.load(folder, split=config.split) for folder in folders]
