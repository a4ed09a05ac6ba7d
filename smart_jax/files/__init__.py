"""Files and folders of checkpoints: where they are, what is in them, and how they are read and written."""

from smart_jax.files import torch_file
from smart_jax.files.checkpoint import (
    CONFIG_FILE,
    INDEX_FILE,
    SINGLE_FILE,
    WEIGHTS_FILE,
    Checkpoint,
    find_adapter,
    read_adapter_config,
)
from smart_jax.files.checkpoint_tensors import first_names, read_tensors
from smart_jax.files.fingerprint import files_fingerprint
from smart_jax.files.hub import EMBEDDED, download, open_checkpoint, resolve, resolve_base
from smart_jax.files.json_file import read_json
from smart_jax.files.safetensors_file import flush_file, map_tensors, write_tensors

__all__ = [
    "CONFIG_FILE",
    "EMBEDDED",
    "INDEX_FILE",
    "SINGLE_FILE",
    "WEIGHTS_FILE",
    "Checkpoint",
    "download",
    "files_fingerprint",
    "find_adapter",
    "first_names",
    "flush_file",
    "map_tensors",
    "open_checkpoint",
    "read_adapter_config",
    "read_json",
    "read_tensors",
    "resolve",
    "resolve_base",
    "torch_file",
    "write_tensors",
]
