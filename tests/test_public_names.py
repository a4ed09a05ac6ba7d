"""A package's `__init__` names what is public: nothing else is imported from outside, and all of it has an example."""

import ast
import functools
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import smart_jax

ROOT = Path(__file__).parents[1]
TREE = ("smart_jax", "train", "eval", "recipes", "benchmarks", "configs")
FILES = {
    ".".join((path.parent if path.name == "__init__.py" else path.with_suffix("")).relative_to(ROOT).parts): path
    for top in TREE
    for path in sorted((ROOT / top).rglob("*.py"))
}
PACKAGES = {name: path for name, path in FILES.items() if path.name == "__init__.py"}
MODULES = FILES.keys() - PACKAGES.keys()
# Modules that outsiders may import: the library's lowest floor, and beside the library what lies on top of a program.
LOWEST = tuple(f"smart_jax.{name}" for name in ("dtypes", "notebook", "option_names", "typing", "vectors"))
OPEN = {name for name in MODULES if name in LOWEST or (name.count(".") == 1 and TREE[0] not in name)}


@functools.cache
def public(package: str) -> list[str]:
    """The package's `__all__`, without importing it."""
    for node in ast.parse(PACKAGES[package].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return ast.literal_eval(node.value)
    return []


@functools.cache
def imported(module: str) -> list[str]:
    """Returns what the module imports of the source tree, anywhere in it, as dotted names."""
    names = []
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def is_public(name: str) -> bool:
    """Whether the package names it; so are a package, and what is of a module that is public itself."""
    owner, _, last = name.rpartition(".")
    if name in PACKAGES or name in OPEN:
        return True
    return last in public(owner) if owner in PACKAGES else owner in MODULES and is_public(owner)


@pytest.mark.parametrize("module", FILES)
def test_imports_of_other_packages_are_of_public_names(module):
    inside = module if module in PACKAGES else module.rpartition(".")[0]
    inner = []
    for name in imported(module):
        owner = max((package for package in PACKAGES if name.startswith(f"{package}.")), key=len, default=None)
        if owner is not None and not f"{inside}.".startswith(f"{owner}.") and not is_public(name):
            inner.append(name)
    assert not inner, f"{module} imports {inner}: import from the package, which names it in __all__, or keep out of it"


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_package_imports_for_others_is_what_it_names(package):
    """`__all__` is what `__init__` imports from its own modules, complete and true."""
    body = ast.parse(PACKAGES[package].read_text(encoding="utf-8")).body
    body += [inner for node in body if isinstance(node, ast.If) for inner in node.body]  # `if TYPE_CHECKING:`
    names = {
        alias.asname or alias.name
        for node in body
        if isinstance(node, ast.ImportFrom) and node.module.startswith(package.partition(".")[0])
        for alias in node.names
    }
    names |= {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"}
    assert sorted(public(package)) == sorted(names)


def test_the_library_has_its_names_when_they_are_used():
    for node in ast.walk(ast.parse(PACKAGES["smart_jax"].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("smart_jax."):
            for alias in node.names:
                assert getattr(smart_jax, alias.name) is getattr(importlib.import_module(node.module), alias.name)
    assert smart_jax.evidence is importlib.import_module("smart_jax.evidence")
    assert callable(smart_jax.maxsim)  # not the package smart_jax.maxsim
    with pytest.raises(AttributeError, match="no attribute 'serch'"):
        smart_jax.serch  # noqa: B018


@pytest.mark.compiles
def test_the_library_is_imported_without_jax():
    """Its parts are imported when they are used: a program that prints its options does not wait for JAX."""
    code = "import smart_jax, sys; assert not {'jax', 'numpy', 'transformers'} & set(sys.modules); dir(smart_jax)"
    subprocess.run([sys.executable, "-c", code], check=True)


def exported() -> Iterator[tuple[str, str]]:
    """Functions and classes that a package names, each once: by the package in which it is written."""
    for package in PACKAGES:
        for name in public(package):
            value = getattr(importlib.import_module(package), name)
            module = getattr(value, "__module__", "")
            if (inspect.isfunction(value) or inspect.isclass(value)) and package in (module, module.rpartition(".")[0]):
                yield package, name


@pytest.mark.parametrize(("package", "name"), list(exported()))
def test_what_is_public_has_an_example(package, name):
    """The example runs: see `--doctest-modules` in pyproject.toml."""
    text = inspect.getdoc(getattr(importlib.import_module(package), name)) or ""
    assert ">>> " in text
