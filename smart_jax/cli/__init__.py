"""Command lines; they need absl and ml_collections (`smart_jax[train]` and `smart_jax[eval]` bring both)."""

from smart_jax.cli.config_file import load_module, run_config_file

__all__ = ["load_module", "run_config_file"]
