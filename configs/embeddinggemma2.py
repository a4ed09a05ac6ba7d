"""EmbeddingGemma 2 on the ColPali training set: an adapter over its frozen states, or LoRA, on one small device.

    python -m train.data --source vidore/colpali_train_set --name colpali --out data     # once; about 118,000 pages
    python -m train.posttrain --config configs/embeddinggemma2.py                        # adapter
    python -m train.posttrain --config configs/embeddinggemma2.py:lora
    python -m train.plan --config configs/embeddinggemma2.py --topology v5e:1x1          # what it takes of one chip

The adapter is written to runs/embeddinggemma2/adapter, for `smart_jax.load("google/embeddinggemma-2", adapter=...)`;
LoRA to runs/embeddinggemma2-lora/lora, a PEFT adapter, and /model, merged.

A page has 280 visual tokens, as in the published preprocessor; 70, 140, 560 and 1120 are --config.data.soft_tokens. The
same setting of an evaluation: --config.soft_tokens of `python -m eval.run`. Computing is in bfloat16 or float32, never
in float16, which the model's states overflow; a GPU without bfloat16 (Turing, such as a T4) takes
--config.dtype=float32.

The pooled vector is the mean of the token vectors, so that the hybrid score is of one space; LoRA trains both scores
together, at the temperature of configs/lora_visdoc.py. The model's weights, about 1.5 GB in bfloat16, come from
"google/embeddinggemma-2", or from a folder: --config.model=FOLDER.

Expected: nothing is published on late interaction with this model, and nothing was measured here with its weights.
benchmarks/README.md has what a plan says of one v5e chip and of one GPU of 16 GB.
"""

from ml_collections import ConfigDict

from train.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """Returns the run's settings.

    Args:
      arg: "" = the adapter alone, over a frozen backbone; "lora" = low-rank branches of the text encoder's maps.

    Raises:
      ValueError: the argument is another one.
    """
    if arg not in ("", "lora"):
        raise ValueError(f"the argument is '{arg}': give none, or lora")
    config = default_config()
    config.model = "google/embeddinggemma-2"
    config.output = "runs/embeddinggemma2"
    config.trainable = "adapter"
    config.batch_size = 128
    config.epochs = 2.0
    config.seed = 42

    config.data.dir = "data"
    config.data.name = "colpali"
    config.data.soft_tokens = 280
    config.data.max_length = 1024
    config.data.workers = 4
    config.data.cache_states = "auto"  # two epochs: the frozen backbone encodes each page once, where the disk holds it

    config.adapter.layers = "-1"
    config.loss.objective = "late"
    config.loss.temperature = 0.03

    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_ratio = 0.03
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0

    config.log_every = 10
    config.eval.every = 100
    config.eval.validation_batches = 4
    config.checkpoint.every = 50
    if arg:
        config.output = "runs/embeddinggemma2-lora"
        config.trainable = "lora"
        config.epochs = 1.0
        config.data.cache_states = "off"
        config.lora.r, config.lora.alpha = 32, 64.0
        config.lora.modules = r"^language_model\..*_proj$"  # vision is frozen
        config.loss.objective = "hybrid"
        config.loss.temperature = 0.05
        config.optimizer.learning_rate = 2e-4
        config.optimizer.weight_decay = 0.0
    return config
