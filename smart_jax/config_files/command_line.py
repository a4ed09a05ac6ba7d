"""The command line of a program that takes a config file: `--config FILE[:ARG] --config.KEY=VALUE ...`."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from smart_jax.config_files.key_help import Defaults, key_lines, meanings_of
from smart_jax.runtime import compilation_cache

HELP = ("-h", "--h", "-help", "--help", "-?", "--helpfull", "--helpshort")


def run_config_file(
    run: Callable[[ConfigDict, ModuleType], None],
    *,
    example: str,
    needs: str | None = None,
    defaults: Defaults | None = None,
) -> None:
    """Calls `run` with the config of the command line and the module that it comes from.

    The file has `get_config(arg="")`, which returns an `ml_collections.ConfigDict`; ARG is its argument. A key that the
    config does not have is refused. The compilation cache is on. `--help` prints the program's docstring and its keys
    with defaults and meanings, or with `--config FILE` the file's.

    Args:
      run: what the program does.
      example: a command that works, for the message where no file is given.
      needs: a function that the file must have besides get_config; None = no other.
      defaults: of the keys that all config files of the program share, as `meanings_of` takes them.

    Raises:
      SystemExit: always, as `absl.app.run` does; its message says what is wrong with the command line.

    Example:
      >>> from unittest.mock import patch
      >>> with patch.object(sys, "argv", ["show"]):
      ...     run_config_file(lambda config, module: print(config), example="python -m show --config my.py")
      Traceback (most recent call last):
      SystemExit: give a config file: python -m show --config my.py
    """
    before = set(flags.FLAGS)
    flag = config_flags.DEFINE_config_file("config", None, "Config file, with :ARG for its get_config.")

    def parse(argv: list[str]) -> list[str]:
        _check_file(_chosen(argv).partition(":")[0])
        if set(HELP) & set(argv):
            print(_help(run, argv, example, defaults))
            sys.exit()
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

    try:
        app.run(start, flags_parser=parse)
    finally:  # a process may run a second program, as a notebook does
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()


def _help(
    run: Callable[[ConfigDict, ModuleType], None], argv: list[str], example: str, defaults: Defaults | None
) -> str:
    """Returns what `--help` prints."""
    program = sys.modules[run.__module__]
    own = {flag for name in (run.__module__, argv[0]) for flag in flags.FLAGS.get_flags_for_module(name)}
    lines = [inspect.getdoc(program) or "", ""]
    lines += [f"  --{flag.name}  {flag.help}" for flag in sorted(own, key=lambda flag: flag.name) if flag.help]
    chosen, _, argument = _chosen(argv).partition(":")
    if chosen:
        module = load_module(chosen, needs="get_config")
        config = module.get_config(argument) if argument else module.get_config()
        lines += [f"Keys of {chosen}, with their values there:", "", *key_lines(config, meanings_of(defaults, module))]
        return "\n".join([inspect.getdoc(module) or "", "", *lines])
    if defaults is not None:
        config = defaults() if not isinstance(defaults, type) else ConfigDict(dataclasses.asdict(defaults()))
        lines += ["Keys that all config files share, with their defaults:", ""]
        lines += key_lines(config, meanings_of(defaults))
    return "\n".join([*lines, "", f"A file may have others: {example} --help lists those of its own, too."])


def _check_file(path: str) -> None:
    """Ends the program where a config file is named that does not exist."""
    if path and not Path(path).is_file():
        there = [str(file) for file in sorted(Path(path).parent.glob("*.py")) if not file.name.startswith("_")]
        close = difflib.get_close_matches(path, there, n=1)
        hint = f": did you mean {close[0]}?" if close else f" (from {Path.cwd()})"
        sys.exit(f"there is no config file {path}{hint}")


def _chosen(argv: list[str]) -> str:
    """Returns the value of --config in a command line, or an empty text."""
    for place, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            return value if equals else "".join(argv[place + 1 : place + 2])
    return ""


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
