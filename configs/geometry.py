"""How the embedded model's tokens become a retriever while only its pooled vector is trained.

    python -m recipes.tiny.pretrain --out build/tiny0 --seed 0      # and for other seeds
    python -m eval.geometry --config configs/geometry.py --config.runs=build/tiny0,build/tiny1,build/tiny2

Models: random initialisation, after the reading warm-up, and after each stage of contrastive training; benchmarks: the
wording ones of configs/eval_tiny.py. README.md has the plot of three seeds, docs/study.md the table.
"""

from ml_collections import ConfigDict

from configs import eval_tiny
from eval.benchmarks import Benchmark
from recipes.tiny import ROOT, STAGES


def get_config(arg: str = "") -> ConfigDict:
    """Returns the settings; the argument is `runs`."""
    own = eval_tiny.get_config()
    config = ConfigDict({name: own[name] for name in ("height", "width", "style", "pages", "fill", "query_seeds")})
    config.runs = arg or str(ROOT)  # folders that recipes.tiny.pretrain made, separated by commas
    config.models = ("new", "warmup", *(f"{stage}/model" for stage in STAGES))
    config.metric = "ndcg@5"
    config.meaning = False
    config.batch_size = 32
    config.output = "results/geometry"
    return config


def get_benchmarks(config: ConfigDict) -> list[Benchmark]:
    """Returns the wording benchmarks of configs/eval_tiny.py."""
    return eval_tiny.get_benchmarks(config)
