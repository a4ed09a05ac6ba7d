"""The paper's fine-tuning on visual documents: LoRA on Qwen3-VL-Embedding-2B (arXiv:2605.24938), by each objective.

    python -m train.data --source vidore/colpali_train_set --name colpali --out data     # once; about 118,000 pages
    python -m train.posttrain --config configs/lora_visdoc.py                            # hybrid
    python -m train.posttrain --config configs/lora_visdoc.py:late
    python -m train.posttrain --config configs/lora_visdoc.py:pooled

The objectives, with t = 0.05 and the other pages of the batch, from all devices, as negatives: pooled = CE(pooled / t),
late = CE(late / t), hybrid = CE(pooled / t + late / t). For a cross-entropy of each, CE(pooled / t) + CE(late / t):
--config.loss.hybrid_loss_weight=0 --config.loss.pooled_loss_weight=1 --config.loss.late_loss_weight=1.

runs/lora_visdoc-OBJECTIVE/lora is a PEFT adapter, runs/lora_visdoc-OBJECTIVE/model the merged model; `smart_jax.load`
opens both. A base in 4 or 8 bits: --config.lora.quantize=nf4 or int8. Vision too: --config.lora.modules=. (a regular
expression of linear maps). An adapter beside it: --config.trainable=adapter+lora (hybrid and late).

On several hosts, the same command on each; those of a TPU pod find each other, others take
--config.distributed.enabled=True --config.distributed.coordinator=HOST:PORT --config.distributed.processes=N
--config.distributed.process=I. All need the same shapes:
--config.data.query_length=256 --config.data.document_length=1024 --config.data.document_patches=3840

The same on the embedded model and the pages of `make demo`, in minutes on a CPU:

    python -m recipes.tiny.pages pairs --out build/demo/pairs --count 12000 --meaning 0.1
    python -m train.data --source build/demo/pairs --name pages --out build/demo/data
    python -m train.posttrain --config configs/lora_visdoc.py:tiny,hybrid

Expected, from the paper: training with the hybrid objective beats models trained for late interaction alone on visual
documents, in at least 20 % less time; docs/objectives.md has what the embedded model shows. What differs from its code:
a page that answers several queries of the batch is a negative of none of them, and max_pixels is lowered so that a page
fits in 1,024 tokens.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import tiny
from train.config import OBJECTIVES, TrainConfig, default_config


def get_config(arg: str = "hybrid") -> ConfigDict:
    """Returns the run's settings.

    Args:
      arg: the objective; "tiny," before it takes the embedded model and the pages of `make demo`.

    Raises:
      ValueError: the objective is unknown.
    """
    first, _, second = arg.partition(",")
    small, objective = first == "tiny", second or first
    if objective not in OBJECTIVES:
        raise ValueError(f"the argument is '{arg}': choose one of {', '.join(OBJECTIVES)}, or tiny,hybrid and so on")
    config = _tiny() if small else _full_size()
    config.output = f"{'build/demo' if small else 'runs'}/lora_visdoc-{objective}"
    config.trainable = "lora"
    config.epochs = 1.0
    config.remat = not small

    config.lora.r, config.lora.alpha = (16, 32.0) if small else (128, 256.0)
    config.lora.modules = r"^language_model\..*_proj$"  # vision is frozen

    config.loss.objective = objective
    config.loss.temperature = 0.05

    config.optimizer.learning_rate = 1e-3 if small else 1e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_ratio = 0.03
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    return config


def _tiny() -> ConfigDict:
    config = tiny.get_config()
    config.steps = 100
    # Queries have the length of a page, which cuts one in a hundred of them: one compilation.
    config.data.max_length = config.data.query_length = config.data.document_length
    config.checkpoint.every = 50
    return config


def _full_size() -> ConfigDict:
    config = default_config()
    config.model = "Qwen/Qwen3-VL-Embedding-2B"
    config.batch_size = 8 * 64
    config.seed = 42
    config.data.dir = "data"
    config.data.name = "colpali"
    config.data.query_instruction = "Find a document image that matches the given query."
    config.data.min_pixels = 4096
    config.data.max_pixels = 960 * 32 * 32  # visual tokens, and 64 for the prompt
    config.data.max_length = 1024
    config.data.workers = 16
    config.log_every = 10
    config.eval.every = 100
    config.eval.validation_batches = 4
    config.checkpoint.every = 50
    return config


def get_eval_fn(config: TrainConfig) -> Callable | None:
    """Returns the evaluation of configs/tiny.py for the embedded model, and None for another."""
    return tiny.get_eval_fn(config) if config.model == "tiny" else None
