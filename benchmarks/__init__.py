"""Programs that measure: each prints a table of benchmarks/README.md."""
