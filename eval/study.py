"""Study of what a model's frozen states give and cost: python -m eval.study --config configs/study.py

For each model and its benchmarks, from states that are encoded once:
  storage       late and hybrid of every setting of `eval.studies.settings`, beside the bytes that a page takes
  late weight   pooled + weight * late
  layers        late and hybrid of the tokens of each hidden layer, as they are and after the pages' mean is subtracted
  words         query tokens with and without the words of the prompt, and pages' likewise

Every figure stands beside its difference from the line that is the default, with a paired bootstrap interval over
queries. A config file has `get_config(arg="") -> ConfigDict` and `get_subjects(config) -> list[Subject]`.
"""

from __future__ import annotations

from types import ModuleType

from ml_collections import ConfigDict

from eval.config import default_config
from eval.studies import run_study, study_markdown
from smart_jax.config_files import run_config_file


def main() -> None:
    """Runs the command."""

    def run(config: ConfigDict, module: ModuleType) -> None:
        report, files = run_study(config, module.get_subjects(config))
        print(f"\n{study_markdown(report)}")
        print(*files.values(), sep="\n")

    example = "python -m eval.study --config configs/study.py"
    run_config_file(run, needs="get_subjects", example=example, defaults=default_config)


if __name__ == "__main__":
    main()
