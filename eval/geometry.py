"""Token geometry along training: python -m eval.geometry --config configs/geometry.py --config.runs=a,b,c

Every run is a folder of model folders, of the same names in every run: the states of training, in order. Of each are
measured pooled, late and hybrid on the benchmarks, and "late, own words": without the words of the prompt on either
side, one of which has the pooled state where a model pools its last token. Then, of the tokens that are left (means
over the benchmarks):
  token cosine    mean cosine of two tokens of different pages: near 1 where all tokens point the same way
  pooled cosine   the same of the pages' pooled vectors
  gap             mean late score of queries with relevant pages minus that with other pages
  gap in sd       the same in standard deviations of a query's scores with other pages, mean over queries

A config file has `get_config(arg="") -> ConfigDict` and `get_benchmarks(config) -> list[Benchmark]`.
"""

from __future__ import annotations

from types import ModuleType

from ml_collections import ConfigDict

from eval.config import default_config
from eval.studies import geometry_markdown, run_geometry
from smart_jax.config_files import run_config_file


def main() -> None:
    """Runs the command."""

    def run(config: ConfigDict, module: ModuleType) -> None:
        report, files = run_geometry(config, module.get_benchmarks(config))
        print(f"\n{geometry_markdown(report)}")
        print(*files.values(), sep="\n")

    example = "python -m eval.geometry --config configs/geometry.py"
    run_config_file(run, needs="get_benchmarks", example=example, defaults=default_config)


if __name__ == "__main__":
    main()
