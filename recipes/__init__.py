"""Recipes of models and data of this project; run from a checkout."""
