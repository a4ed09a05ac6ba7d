"""The source tree's annotations are checked as the suite runs: shapes by jaxtyping, all types by beartype."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

from beartype import BeartypeConf, beartype
from beartype.door import die_if_unbearable
from jaxtyping import install_import_hook

CONF = BeartypeConf(is_pep484_tower=True)  # as for mypy, an int is a float too


def check_annotations(packages: Sequence[str]) -> None:
    """Checks the annotations of these packages, which are imported later."""
    install_import_hook(packages, f"{__name__}.checked")


def checked(function: Callable) -> Callable:
    """Checks what a function takes; jaxtyping calls this again for what it returns."""
    strict = beartype(function, conf=CONF)
    if function.__name__ != "__init__":
        return strict
    built = any(name.startswith("ret") for name in function.__code__.co_varnames)

    @functools.wraps(function)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if not hasattr(self, "__post_init__"):
            strict(self, *args, **kwargs)
        elif built:  # a dataclass that refuses and converts for itself: its fields are checked, not what it was given
            for name, hint in _fields(type(self)):
                die_if_unbearable(getattr(self, name), hint, conf=CONF, exception_prefix=f"{name}: ")

    return init


@functools.cache
def _fields(cls: type) -> list[tuple[str, Any]]:
    hints = get_type_hints(cls, include_extras=True)
    return [(field.name, hints[field.name]) for field in dataclasses.fields(cls)]
