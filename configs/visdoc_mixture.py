"""LoRA on several sets of visual documents, each batch from one of them, with a hard negative for every query.

    hub() { python -m train.data --source $1 --name $2 --out data --max_negatives 1 "${@:3}"; }
    model=Qwen/Qwen3-VL-Embedding-2B
    mine() { python -m train.data.mine --model $model --data data --name $1 --out $1_mined --negatives 1; }
    hub vidore/colpali_train_set colpali; mine colpali
    hub openbmb/VisRAG-Ret-Train-Synthetic-data visrag; mine visrag
    for language in de en es fr it; do hub llamaindex/vdr-multilingual-train vdr_$language --subset $language; done
    python -m train.posttrain --config configs/visdoc_mixture.py

The third set brings negatives, 16 a query, of which the first is kept; for the others, the model that is to be trained
finds them. A data set weighs as much as it has batches, unless `--config.data.name=colpali_mined=2,visrag_mined=1` says
otherwise. The rest is configs/lora_visdoc.py's hybrid run. The sets themselves were not at hand: that their columns are
those of `train/data/parquet.py` is known from their cards and from public code.

The same on the embedded model, pages of `make demo`, and pages asked for by their summaries:

    pairs() { python -m recipes.tiny.pages pairs --out build/demo/$1 --count $2 --meaning $3 --seed $4; }
    data() { python -m train.data --source build/demo/$1 --name $2 --out build/demo/data; }
    mine() { python -m train.data.mine --model tiny --data build/demo/data --name $1 --out $1_mined --negatives 1; }
    pairs pairs 12000 0.1 0; data pairs pages; mine pages
    pairs summaries 3000 1 1; data summaries summaries; mine summaries
    python -m train.posttrain --config configs/visdoc_mixture.py:tiny
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import lora_visdoc
from train.config import TrainConfig

LANGUAGES = ("de", "en", "es", "fr", "it")


def get_config(arg: str = "") -> ConfigDict:
    """Returns the run's settings.

    Args:
      arg: "tiny" takes the embedded model and its pages; "" takes the public sets.

    Raises:
      ValueError: the argument is another one.
    """
    if arg not in ("", "tiny"):
        raise ValueError(f"the argument is '{arg}': give none, or tiny")
    config = lora_visdoc.get_config("tiny,hybrid" if arg else "hybrid")
    config.output = f"{'build/demo' if arg else 'runs'}/visdoc_mixture"
    if arg:
        config.data.name = "pages_mined,summaries_mined"
    else:
        config.data.name = ",".join(["colpali_mined", "visrag_mined", *(f"vdr_{name}" for name in LANGUAGES)])
    config.data.negatives = 1
    return config


def get_eval_fn(config: TrainConfig) -> Callable | None:
    """Returns the evaluation of configs/tiny.py for the embedded model, and None for another."""
    return lora_visdoc.get_eval_fn(config)
