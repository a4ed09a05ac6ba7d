"""Benchmarks of page images: queries, pages and judgements in; figures with intervals out."""
