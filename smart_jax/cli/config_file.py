"""The command line of a program that takes a config file: `--config FILE[:ARG] --config.KEY=VALUE ...`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from smart_jax.runtime import compilation_cache


def run_config_file(run: Callable[[ConfigDict, ModuleType], None], *, example: str, needs: str | None = None) -> None:
    """Calls `run` with the config of the command line and the module that it comes from.

    The file has `get_config(arg="")`, which returns an `ml_collections.ConfigDict`; ARG is its argument. A key that the
    config does not have is refused. The compilation cache is on.

    Args:
      run: what the program does.
      example: a command that works, for the message where no file is given.
      needs: a function that the file must have besides get_config; None = no other.

    Raises:
      SystemExit: always, as `absl.app.run` does; its message says what is wrong with the command line.

    Example:
      >>> from unittest.mock import patch
      >>> with patch.object(sys, "argv", ["show"]):
      ...     run_config_file(lambda config, module: print(config), example="python -m show --config my.py")
      Traceback (most recent call last):
      SystemExit: give a config file: python -m show --config my.py
    """
    flag = config_flags.DEFINE_config_file("config", None, "Config file, with :ARG for its get_config.")

    def parse(argv: list[str]) -> list[str]:
        try:
            return app.parse_flags_with_usage(argv)
        except (AttributeError, KeyError) as error:  # ml_collections' answer to an unknown key
            sys.exit(f"unknown config key: {str(error).strip(chr(39)).encode().decode('unicode_escape')}")

    def start(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        if flag.value is None:
            sys.exit(f"give a config file: {example}")
        path, _, _ = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")  # the rest is the argument
        module = load_module(path, needs=needs)
        compilation_cache.enable()
        run(flag.value, module)

    app.run(start, flags_parser=parse)


def load_module(path: str | Path, *, needs: str | None = None) -> ModuleType:
    """Imports a config file.

    Args:
      path: of the file.
      needs: a function that it must have; None = none.

    Raises:
      ValueError: it is no Python file or has no such function.

    Example:
      >>> import tempfile
      >>> file = Path(tempfile.mkdtemp()) / "my.py"
      >>> _ = file.write_text("def get_config(arg=''): return arg.upper()")
      >>> load_module(file, needs="get_config").get_config("x")
      'X'
    """
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"the config {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if needs is not None and not hasattr(module, needs):
        raise ValueError(f"the config {path} has no {needs}(config): this command needs one")
    return module
