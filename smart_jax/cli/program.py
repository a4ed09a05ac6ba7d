"""All commands together, and what becomes of errors: messages on stderr and exit codes, without tracebacks.

The command library is typer: signatures with types are the options, its help and completion need no code, it brings
rich for tables, and it is what people know who use FastAPI, which serves the index's page.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup

from smart_jax.cli.index_changes import add, compact, copy, delete, update
from smart_jax.cli.index_queries import certify, explain, info, items, search
from smart_jax.cli.models import models
from smart_jax.cli.output import FAILED, INTERRUPTED, say
from smart_jax.cli.scoring import score
from smart_jax.cli.serving import serve

DEBUG = "SMART_JAX_DEBUG"
_OFF = ("", "0", "off", "false", "no")
_LIBRARIES = ("typer", "click")  # whose own exceptions say what is wrong with the command line, or end the program


class Program(TyperGroup):
    """The commands, with one way out of all of them."""

    def invoke(self, ctx: Any) -> Any:
        """Runs a command; an error becomes a message, unless tracebacks are asked for."""
        try:
            with warnings.catch_warnings():
                warnings.showwarning = cast(Any, _say_warning)
                return super().invoke(ctx)
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # the reader of a pipe has seen enough
            raise
        except Exception as error:
            traceback = ctx.params.get("debug") or os.environ.get(DEBUG, "").lower() not in _OFF
            if traceback or type(error).__module__.partition(".")[0] in _LIBRARIES:
                raise
            say(message_of(error))
            raise typer.Exit(FAILED) from None


def _say_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"{message}")


def message_of(error: Exception) -> str:
    """Returns what is said of an error: its own words where the library chose them, otherwise its kind, too."""
    text = str(error).strip()
    if isinstance(error, OSError | ValueError | TypeError | ImportError) and text and not isinstance(error, KeyError):
        return text
    return f"{type(error).__name__}: {text}" if text else f"{type(error).__name__} (--debug shows where)"


def print_version(asked: bool) -> bool:
    """Prints the library's version and ends the program, if that is asked for."""
    if asked:
        typer.echo(f"smart-jax {version('smart_jax')}")
        raise typer.Exit
    return asked


program = typer.Typer(
    cls=Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Late interaction over the frozen states of single-vector embedding models: index, search, explain.",
    epilog="Exit codes: 0 done, 1 refused, failed or nothing to do, 2 wrong usage, 130 interrupted.",
)
index = typer.Typer(no_args_is_help=True, help="A folder of pages that is added to, searched and explained.")


@program.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help=f"Show tracebacks; so does {DEBUG}=1.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Takes the options that stand before a command."""


COMMANDS: tuple[Callable[..., None], ...] = (
    add,
    search,
    explain,
    items,
    delete,
    update,
    info,
    certify,
    compact,
    copy,
    serve,
)
for command in COMMANDS:
    index.command(command.__name__)(command)
program.add_typer(index, name="index")
program.command("score")(score)
program.command("models")(models)
