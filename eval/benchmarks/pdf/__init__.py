"""A benchmark from any PDF with an outline."""

from eval.benchmarks.pdf.benchmark import pdf_benchmark

__all__ = ["pdf_benchmark"]
