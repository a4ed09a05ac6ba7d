"""The documentation site is built without a warning and describes every public name; the repository has one address."""

import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile

ROOT = Path(__file__).parents[1]
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
TEXTS = ("*.md", "*.cff", "docs/*.md", "benchmarks/*.md", "notebooks/*", ".github/**/*.yml", "smart_jax/**/*.py")


def public_names():
    """The names under which each public object can be imported."""
    names = defaultdict(set)
    for root in ("smart_jax", "train", "eval"):
        inner = [each.name for each in pkgutil.walk_packages([str(ROOT / root)], f"{root}.") if each.ispkg]
        for module in map(importlib.import_module, [root, *inner]):
            for name in getattr(module, "__all__", ()):
                names[name, id(getattr(module, name))].add(f"{module.__name__}.{name}")
    return list(names.values())


@pytest.mark.slow
def test_it_is_built_without_a_warning_and_has_every_public_name(tmp_path):
    command = [sys.executable, "-m", "sphinx", "--builder", "html", "--fail-on-warning", "--keep-going", "--quiet"]
    done = subprocess.run([*command, "docs", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "objects.inv", "rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, uri: uri)
    described = {name for kind in inventory.values() for name in kind}
    public = public_names()
    assert len(public) > 300
    assert [names for names in public if not described & {*names, *(f"reference/{name}" for name in names)}] == []


def test_the_repository_has_one_address():
    repository = re.compile(r"https://github\.com/[\w.-]+/smart_jax")
    files = [file for pattern in TEXTS for file in ROOT.glob(pattern)]
    written = {(str(file.relative_to(ROOT)), url) for file in files for url in repository.findall(file.read_text())}
    assert written and {url for _, url in written} == {URLS["Repository"]}, sorted(written)
