"""How models and data of this project are made; run from a checkout."""
