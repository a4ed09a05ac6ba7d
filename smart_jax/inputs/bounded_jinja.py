"""Jinja whose templates come with checkpoints: sandboxed, and bounded in steps, in time and in the size of values.

The sandbox keeps templates from Python's objects, but neither from loops in loops nor from `'a' * 2000000000`. Here
every pass of a loop, every call, filter, test and product is counted, and no value becomes larger than a bound.
"""

from __future__ import annotations

import contextvars
import datetime
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MOST_STEPS = 100_000  # of one rendering
MOST_SECONDS = 2.0
MOST_CHARACTERS = 2**20  # of a value, beside what the texts that are put in have
MOST_SOURCE = 2**17  # characters of a template
MOST_NUMBER = 10_000  # as an argument: widths, counts, ranges
_WIDTHS = (
    "center",
    "ljust",
    "rjust",
    "zfill",
    "expandtabs",
    "indent",
    "wordwrap",
    "truncate",
    "format",
    "tojson",
    "__mul__",
)


class TemplateTooLargeError(TemplateError):
    """A template takes more steps, more time or larger values than any prompt needs."""


class _Budget:
    def __init__(self, characters: int) -> None:
        self.steps, self.end, self.characters = 0, time.monotonic() + MOST_SECONDS, characters

    def step(self) -> None:
        self.steps += 1
        if self.steps > MOST_STEPS or time.monotonic() > self.end:
            raise TemplateTooLargeError(f"it takes more than {MOST_STEPS} steps, or {MOST_SECONDS:g} seconds")

    def check(self, size: int) -> None:
        if size > self.characters:
            raise TemplateTooLargeError(f"a value is larger than {self.characters} characters")


_budget: contextvars.ContextVar[_Budget | None] = contextvars.ContextVar("budget", default=None)


def step(size: int = 0) -> None:
    """Counts a step of the rendering that is going on, and the size of what it makes."""
    if (budget := _budget.get()) is not None:
        budget.step()
        budget.check(size)


@contextmanager
def bounded(texts: int) -> Iterator[None]:
    """Bounds what is rendered within; `texts`: characters of what is put in, which may be there several times."""
    token = _budget.set(_Budget(MOST_CHARACTERS + 16 * texts))
    try:
        yield
    except (RecursionError, OverflowError, MemoryError) as error:
        raise TemplateTooLargeError(f"{type(error).__name__}: {error}") from error
    finally:
        _budget.reset(token)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """An environment whose templates are rendered within `bounded`.

    Example:
      >>> with bounded(texts=0):
      ...     BoundedEnvironment().from_string("{{ 'a' * 2000000000 }}").render()
      Traceback (most recent call last):
      smart_jax.inputs.bounded_jinja.TemplateTooLargeError: a value is larger than 1048576 characters
    """

    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.filters |= {name: _counted(name, cast(Any, filter_)) for name, filter_ in self.filters.items()}
        self.tests |= {name: _counted(name, cast(Any, test)) for name, test in self.tests.items()}
        self.filters |= {"tojson": _counted("tojson", _to_json), "_pass": _pass, "_joined": _joined}
        self.globals |= {"range": _range, "namespace": _PublicNamespace, "dict": _new_dict}
        for name in ("lipsum", "cycler", "joiner"):
            self.globals.pop(name, None)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MOST_SOURCE:
            raise TemplateTooLargeError(f"it has {len(source)} characters, more than {MOST_SOURCE}")
        try:
            return _instrumented(super()._parse(source, name, filename))
        except RecursionError as error:
            raise TemplateTooLargeError("it is nested too deeply") from error

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Computes what an operator gives, once it is known to be small."""
        step(_product_size(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(self, /, context: Any, called: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a function or a method, once its arguments are known to be small, and so its result."""
        name = getattr(called, "__name__", "")
        method = getattr(called, "__wrapped__", called)  # the sandbox wraps str.format
        _check_arguments(name, (getattr(method, "__self__", None), *args), kwargs)
        result = super().call(context, called, *args, **kwargs)
        step(_size(result))
        return result


class _Generation(Extension):
    """The tag that marks what an assistant writes, which means nothing here."""

    tags = {"generation"}  # noqa: RUF012  an attribute of instances in Jinja's annotations

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


@functools.cache
def chat_environment() -> BoundedEnvironment:
    """Returns the environment of chat templates: what transformers' has, bounded."""
    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
    return environment


def _raise(message: object) -> None:
    raise TemplateError(str(message)[:1000])


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _new_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _range(*bounds: int) -> range:
    numbers = range(*bounds)
    if len(numbers) > MOST_NUMBER:
        raise TemplateTooLargeError(f"a range has {len(numbers)} numbers, more than {MOST_NUMBER}")
    return numbers


class _PublicNamespace(Namespace):
    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace takes no name that begins with an underscore, such as {name!r}")
        super().__setitem__(name, value)


def _pass(value: Any) -> Any:
    step()
    return value


def _joined(value: Any) -> Any:
    step(_size(value))
    return value


def _instrumented(template: nodes.Template) -> nodes.Template:
    """Counts each pass of a loop and each call of a macro, and looks at the result of each `~`."""
    for kind in (nodes.For, nodes.Macro, nodes.CallBlock, nodes.FilterBlock):
        for node in template.find_all(kind):
            counted = nodes.Filter(nodes.Const(None), "_pass", [], [], None, None)
            cast(nodes.For, node).body.insert(0, nodes.ExprStmt(counted, lineno=node.lineno))
    _wrap_concatenations(template)
    assert template.environment is not None
    template.set_environment(template.environment)
    return template


def _wrap_concatenations(node: nodes.Node) -> None:
    for field, value in list(node.iter_fields()):
        children = value if isinstance(value, list) else [value]
        for at, child in enumerate(children):
            if not isinstance(child, nodes.Node):
                continue
            _wrap_concatenations(child)
            if isinstance(child, nodes.Concat):
                wrapped = nodes.Filter(child, "_joined", [], [], None, None, lineno=child.lineno)
                if isinstance(value, list):
                    value[at] = wrapped
                else:
                    setattr(node, field, wrapped)


def _counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a filter or a test that is counted, with its attributes, by which Jinja hands it the context."""

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        _check_arguments(name, args, kwargs)
        result = function(*args, **kwargs)
        step(_size(result))
        return result

    return counted


def _check_arguments(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    values = [*args, *kwargs.values()]
    for value in values:
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MOST_NUMBER and name in _WIDTHS:
            raise TemplateTooLargeError(f"{name} is asked for {value} characters, more than {MOST_NUMBER}")
    texts = [value for value in values if isinstance(value, str)]
    if name in ("format", "format_map") and any(_wide(text) for text in texts):
        raise TemplateTooLargeError(f"{name} is asked for more than {MOST_NUMBER} characters")
    if name == "replace" and len(texts) >= 3:
        step(len(texts[0]) + (texts[0].count(texts[1]) + 1) * len(texts[2]))
    if name == "join":
        for value in values:
            if isinstance(value, list | tuple):
                step(sum(_size(part) for part in value) + len(value) * sum(map(len, texts)))
    step()


def _wide(text: str) -> bool:
    """Tells whether a format has a number that may be a width beyond the bound."""
    digits = "".join(c if c.isdigit() else " " for c in text).split()
    return any(len(number) > len(str(MOST_NUMBER)) or int(number) > MOST_NUMBER for number in digits)


def _size(value: Any) -> int:
    """Returns the characters of a text, the parts of a container, and the digits of a number."""
    if isinstance(value, int):
        return value.bit_length() // 3
    return len(value) if isinstance(value, str | bytes | list | tuple | dict | set) else 0


def _product_size(operator: str, left: Any, right: Any) -> int:
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    if operator == "+":
        return _size(left) + _size(right)
    if operator == "*":
        if numbers:
            return _size(left) + _size(right)
        count = left if isinstance(left, int) else right if isinstance(right, int) else 1
        return max(int(count), 0) * max(_size(right if isinstance(left, int) else left), 1)
    if operator == "**":
        return _size(left) * int(abs(right)) if numbers and isinstance(left, int) and isinstance(right, int) else 0
    if isinstance(left, str) and _wide(left):
        raise TemplateTooLargeError(f"a format asks for more than {MOST_NUMBER} characters")
    return _size(left)
