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
            "model": "tiny",  # a hub id, a folder, "minilm" or "tiny"
            "head": config_dict.placeholder(str),  # as in smart_jax.load, like the next three; None = the checkpoint's
            "pooling": config_dict.placeholder(str),  # how states become the pooled vector
            "prompt": config_dict.placeholder(str),  # a Jinja template
            "soft_tokens": config_dict.placeholder(int),  # of an image, of a model that scales each to a number of them
            "task": config_dict.placeholder(str),  # which of a checkpoint's adapters is used
            "adapter": config_dict.placeholder(str),  # folder, adapter.pt or hub id; None = no adapter methods
            "adapter_layer": config_dict.placeholder(int),  # of hidden_states, in place of its own; None = its own
            "dtype": config_dict.placeholder(str),  # of the backbone, float32 or bfloat16; None = by device
            "storage_dtype": "float16",  # of the stored states, or float32
            "cache": config_dict.placeholder(str),  # folder of states; None = OUTPUT/embeddings, "" = only memory
            "keep_states": True,  # False = a benchmark's are deleted from there when it is done
            "layers": (),  # to keep in the cache beside those that the methods need, for adapters to come
            "memory_gib": 8.0,  # of this host, for embeddings
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},  # this process's devices; the batch is split over data * fsdp
            "distributed": {  # see smart_jax.runtime.distributed; on TPU pods and Slurm jax finds the last three itself
                "enabled": config_dict.placeholder(bool),  # None = on TPU
                "coordinator": config_dict.placeholder(str),  # HOST:PORT
                "processes": config_dict.placeholder(int),  # number of them
                "process": config_dict.placeholder(int),  # number of this one, from 0
            },
            "rows": config_dict.placeholder(tuple),  # methods; None = all that apply; names in eval/methods/names.py
            "metrics": METRICS,  # names, the first of which is reported first
            "pooled_weight": 1.0,  # of the two scores in the hybrid score
            "late_weight": 1.0,  # likewise
            "scorer": "fast",  # or "reference": the paper's own order of operations, slowly
            "batch_size": config_dict.placeholder(int),  # None = the encoder's default
            "query_block": QUERY_BLOCK,  # queries scored at a time
            "max_queries": config_dict.placeholder(int),  # a random sample; None = all
            "max_corpus": config_dict.placeholder(int),  # likewise; relevant documents always stay
            "bootstrap": {"samples": 2000, "seed": 0, "level": 0.95},  # of the intervals
            "seed": 0,  # of the samples above
            "output": "results/eval",  # folder of the report
        }
    )
