"""MMEB-V2 (arXiv:2507.04590): 36 image, 18 video and 24 visual-document tasks as a table, and a loader per layout."""
