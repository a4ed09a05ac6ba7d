"""Training: data, losses, optimizer, and the loop behind `python -m train.posttrain`. Run from a checkout."""
