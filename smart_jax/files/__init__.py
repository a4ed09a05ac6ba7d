"""Files and folders of checkpoints: where they are, what is in them, and how they are read and written."""

from smart_jax.files import torch_file
from smart_jax.files.checkpoint_folder import (
    CONFIG_FILE,
    INDEX_FILE,
    SINGLE_FILE,
    WEIGHTS_FILE,
    find_adapter,
    having,
    read_adapter_config,
)
from smart_jax.files.fingerprint import files_fingerprint
from smart_jax.files.hub import EMBEDDED, download, resolve, resolve_base
from smart_jax.files.json_file import read_json
from smart_jax.files.safetensors_file import read_tensors, some
from smart_jax.files.tensor_file import flush, map_file, write

__all__ = [
    "CONFIG_FILE",
    "EMBEDDED",
    "INDEX_FILE",
    "SINGLE_FILE",
    "WEIGHTS_FILE",
    "download",
    "files_fingerprint",
    "find_adapter",
    "flush",
    "having",
    "map_file",
    "read_adapter_config",
    "read_json",
    "read_tensors",
    "resolve",
    "resolve_base",
    "some",
    "torch_file",
    "write",
]
