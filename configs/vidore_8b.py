"""The paper's adapter run on Qwen3-VL-Embedding-8B (arXiv:2605.24938); see its sibling `configs/vidore.py`.

    python -m train.data --source vidore/colpali_train_set --name colpali --out data     # once, the same as for the 2B
    python -m train.posttrain --config configs/vidore_8b.py
    python -m train.posttrain --config configs/vidore_8b.py --config.resume=True         # after an interruption
    python -m train.posttrain --config configs/vidore_8b.py:reference                    # as the paper's code does it

The projection is 4096 x 4096. On devices that do not hold 16 GB of bfloat16 weights beside the activations the weights
are split (mesh.fsdp, chosen from the devices' memory as in its sibling; the batch stays split over all devices). By
`python -m train.plan` eight v5e chips hold it so, and one H100 the whole of it.

Expected, from the paper and not measured here: as for the 2B; the pooled vector alone has 82.4 on visual documents
(MMEB-V2, 24 tasks, nDCG@5).
"""

from ml_collections import ConfigDict

from configs import vidore


def get_config(arg: str = "") -> ConfigDict:
    """Returns the run's settings; `arg` is as in `configs/vidore.py`."""
    config = vidore.get_config(arg)
    config.model = "Qwen/Qwen3-VL-Embedding-8B"
    config.output = config.output.replace("vidore", "vidore_8b", 1)
    return config
