"""The keys that all configs of an evaluation share; a config file adds others (a path, a page size)."""

from __future__ import annotations

from ml_collections import ConfigDict, config_dict

from eval.methods import METRICS, QUERY_BLOCK


def default_config() -> ConfigDict:
    """Returns the defaults of `python -m eval.run`; the command line refuses unknown keys.

    Example:
      >>> default_config().storage_dtype
      'float16'
    """
    return ConfigDict(
        {
            "model": "tiny",  # a hub id, a folder, or "tiny"
            "head": config_dict.placeholder(str),  # these four as in smart_jax.load; None = the checkpoint's
            "pooling": config_dict.placeholder(str),
            "prompt": config_dict.placeholder(str),
            "task": config_dict.placeholder(str),
            "adapter": config_dict.placeholder(str),  # folder or adapter.pt; None = no adapter methods
            "dtype": config_dict.placeholder(str),  # of the backbone, float32 or bfloat16; None = by device
            "storage_dtype": "float16",  # of the stored states, or float32
            "cache": config_dict.placeholder(str),  # folder of states; None = OUTPUT/embeddings, "" = only memory
            "layers": (),  # to keep in the cache beside those that the methods need, for adapters to come
            "memory_gib": 8.0,  # of this host, for embeddings
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},  # this process's devices; the batch is split over data * fsdp
            "distributed": {  # see smart_jax.runtime.distributed; on TPU pods and Slurm jax finds the last three itself
                "enabled": config_dict.placeholder(bool),  # None = on TPU
                "coordinator": config_dict.placeholder(str),  # HOST:PORT
                "processes": config_dict.placeholder(int),
                "process": config_dict.placeholder(int),
            },
            "rows": config_dict.placeholder(tuple),  # methods; None = all that apply; names in eval/methods/names.py
            "metrics": METRICS,
            "pooled_weight": 1.0,
            "late_weight": 1.0,
            "scorer": "fast",  # or "reference": the paper's own order of operations, slowly
            "batch_size": config_dict.placeholder(int),  # None = the encoder's default
            "query_block": QUERY_BLOCK,  # queries scored at a time
            "max_queries": config_dict.placeholder(int),  # a random sample; None = all
            "max_corpus": config_dict.placeholder(int),  # likewise; relevant documents always stay
            "bootstrap": {"samples": 2000, "seed": 0, "level": 0.95},
            "seed": 0,  # of the samples above
            "output": "results/eval",
        }
    )
