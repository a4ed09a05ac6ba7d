"""What the commands that take a config file share: its flag, its module, and a note of what they ran on."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from smart_jax.runtime import compilation_cache

PACKAGES = ("smart_jax", "jax", "flax", "transformers", "numpy", "pillow")


def command(run: Callable[[ConfigDict, ModuleType], None], *, needs: str) -> None:
    """Calls `run` with the config of the command line, unknown keys refused, and the module that it comes from.

    Args:
      run: what the command does.
      needs: a function that the config file must have besides get_config.
    """
    flag = config_flags.DEFINE_config_file("config", None, "A config file, configs/*.py.", lock_config=True)
    flags.mark_flag_as_required("config")

    def start(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        config = flag.value
        path, _, _ = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")  # the rest is the argument
        module = load_module(path, needs=needs)
        compilation_cache.enable()
        run(config, module)

    app.run(start)


def load_module(path: str, *, needs: str) -> ModuleType:
    """The module of a config file; ValueError if it is no Python file or has no such function."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"the config {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, needs):
        raise ValueError(f"the config {path} has no {needs}(config): this command needs one")
    return module


def environment() -> dict[str, Any]:
    """Devices, machine and versions."""
    devices = jax.devices()
    return {
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": {package: version(package) for package in PACKAGES},
    }
