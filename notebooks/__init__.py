"""Notebooks, and the program that makes them from their sources."""
