"""The program `smart-jax`: an index by the command line, scores, and what models are supported."""

__all__ = ["main"]


def main() -> None:
    """Runs the command line of `smart-jax`, as its console script does; docs/command_line.md says what it takes.

    Neither the command library nor JAX is imported before they are needed.

    Raises:
      SystemExit: always; 0 = done, 1 = refused, failed or nothing to do, 2 = wrong usage, 130 = interrupted.

    Example:
      >>> import sys
      >>> from unittest.mock import patch
      >>> with patch.object(sys, "argv", ["smart-jax", "index", "info", "no/such/folder"]):
      ...     main()
      Traceback (most recent call last):
      SystemExit: 1
    """
    from smart_jax.cli.program import program

    program(prog_name="smart-jax")
