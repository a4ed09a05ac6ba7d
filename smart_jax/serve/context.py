"""Context that routes share: the service of their application, and failures as refusals."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends, Request

from smart_jax.index import BusyError
from smart_jax.serve.errors import ErrorAnswer, Refusal
from smart_jax.serve.service import Service

ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorAnswer} for status in (413, 422, 429, 504)}


def service_of(request: Request) -> Service:
    """Returns the service of the application that a request is for."""
    service: Service = request.app.state.service
    return service


Context = Annotated[Service, Depends(service_of)]


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Has what the index says of a request reach the client.

    404 where something is not there, 409 where another process writes to the index, 422 where the request is wrong.
    """
    try:
        yield
    except KeyError as error:
        raise Refusal(404, f"there is no item {error.args[0]!r}: it may have been removed or replaced") from None
    except IndexError:
        raise Refusal(404, "there is no such picture: the item has none, or its file is gone or was changed") from None
    except BusyError as error:
        raise Refusal(409, str(error)) from None
    except (ValueError, TypeError) as error:
        raise Refusal(422, str(error)) from None
