"""Files and folders of checkpoints: where they are, what is in them, and how they are read and written."""

from smart_jax.files import torch_file
from smart_jax.files.checked_values import checked_float, checked_int, shown
from smart_jax.files.checkpoint import (
    CONFIG_FILE,
    INDEX_FILE,
    SINGLE_FILE,
    WEIGHTS_FILE,
    Checkpoint,
    find_adapter,
    read_adapter_config,
)
from smart_jax.files.checkpoint_tensors import first_names, read_tensors, tensor_shapes, weight_sizes
from smart_jax.files.fingerprint import files_fingerprint
from smart_jax.files.hub import download, hub_id, is_hub_id, open_checkpoint, resolve, resolve_base, snapshot_of
from smart_jax.files.inside import path_inside
from smart_jax.files.json_file import parse_json, parse_json_object, read_json, read_json_value
from smart_jax.files.lock import holder, lock_file, named_lock, try_lock
from smart_jax.files.named_models import EMBEDDED, PACKAGED, PackagedModel, meant_by, named_folder
from smart_jax.files.other_folders import other_folder
from smart_jax.files.patterns import check_pattern
from smart_jax.files.safetensors_file import (
    TensorEntry,
    flush_file,
    map_tensors,
    read_header,
    safetensors_header,
    write_tensors,
)
from smart_jax.files.whole_files import remove_partial, whole_file, write_whole_text

__all__ = [
    "CONFIG_FILE",
    "EMBEDDED",
    "INDEX_FILE",
    "PACKAGED",
    "SINGLE_FILE",
    "WEIGHTS_FILE",
    "Checkpoint",
    "PackagedModel",
    "TensorEntry",
    "check_pattern",
    "checked_float",
    "checked_int",
    "download",
    "files_fingerprint",
    "find_adapter",
    "first_names",
    "flush_file",
    "holder",
    "hub_id",
    "is_hub_id",
    "lock_file",
    "map_tensors",
    "meant_by",
    "named_folder",
    "named_lock",
    "open_checkpoint",
    "other_folder",
    "parse_json",
    "parse_json_object",
    "path_inside",
    "read_adapter_config",
    "read_header",
    "read_json",
    "read_json_value",
    "read_tensors",
    "remove_partial",
    "resolve",
    "resolve_base",
    "safetensors_header",
    "shown",
    "snapshot_of",
    "tensor_shapes",
    "torch_file",
    "try_lock",
    "weight_sizes",
    "whole_file",
    "write_tensors",
    "write_whole_text",
]
