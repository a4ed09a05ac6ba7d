"""Scoring methods, and the evaluation of one encoder on one benchmark by each of them."""

from eval.methods.eval_fn import EvalFn, make_eval_fn
from eval.methods.evaluate import METRICS, QUERY_BLOCK, Options, run_benchmark
from eval.methods.names import ADAPTER_METHODS, METHODS, MODEL_METHODS
from eval.methods.result import Result

__all__ = [
    "ADAPTER_METHODS",
    "METHODS",
    "METRICS",
    "MODEL_METHODS",
    "QUERY_BLOCK",
    "EvalFn",
    "Options",
    "Result",
    "make_eval_fn",
    "run_benchmark",
]
