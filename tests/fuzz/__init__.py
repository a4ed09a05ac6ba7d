"""Readers of files under random damage: `python -m tests.fuzz --minutes 5`."""
