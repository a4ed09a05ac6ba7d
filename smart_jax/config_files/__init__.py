"""Programs with config files; they need absl and ml_collections, which the extras `train` and `eval` bring."""

from smart_jax.config_files.command_line import load_module, run_config_file
from smart_jax.config_files.key_help import meanings_of

__all__ = ["load_module", "meanings_of", "run_config_file"]
