"""SMART's adapter post-training on the embedded default model: about a minute on two CPU cores.

    python -m recipes.tiny.pages pairs --out build/demo/pairs --count 12000 --meaning 0.1
    python -m train.data --source build/demo/pairs --name pages --out build/demo/data
    python -m train.posttrain --config configs/tiny.py
    python -m eval.run --config configs/eval_tiny.py --config.adapter=build/demo/run/adapter

The backbone is frozen; a LayerNorm and a linear map of its token states are trained with the late objective on pages
of the standard library's documentation (`make demo` runs these commands).
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import eval_tiny
from eval.methods import make_eval_fn
from train.config import TrainConfig, default_config


def get_config(arg: str = "build/demo") -> ConfigDict:
    """Returns the run's settings; `arg` is the folder of the data (in data/pages) and of the run."""
    config = default_config()
    config.model = "tiny"
    config.output = f"{arg}/run"
    config.batch_size = 64
    config.steps = 600
    config.log_every = 20
    config.loss.objective = "late"
    config.loss.temperature = 0.03
    config.optimizer.learning_rate = 1e-3
    config.data.dir = f"{arg}/data"
    config.data.name = "pages"
    config.data.document_length = 42  # 32 visual tokens and the prompt
    config.data.document_patches = 128
    config.data.cache_states = "auto"  # each page is read 7.5 times
    config.eval.validation_batches = 4
    config.checkpoint.every = 100
    config.checkpoint.keep = 1
    return config


def get_eval_fn(config: TrainConfig) -> Callable:
    """Returns what evaluates an encoder: hit@1 and nDCG@5 on held-out pages, with the first seed's wording queries."""
    evaluation = eval_tiny.get_config()
    evaluation.query_seeds, evaluation.meaning = 1, False
    return make_eval_fn(eval_tiny.get_benchmarks(evaluation))
