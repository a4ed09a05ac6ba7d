"""Errors of the API: a status, and what is wrong as JSON."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

KINDS = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "too_large",
    421: "misdirected",
    422: "invalid",
    429: "too_many_requests",
    500: "failed",
    503: "not_ready",
    504: "timeout",
}


class ErrorBody(BaseModel):
    """Fault of a request."""

    status: int = Field(description="Of the answer.")
    type: str = Field(description="Of the error, in one word.", examples=["invalid"])
    message: str = Field(description="What is wrong, and the remedy.")


class ErrorAnswer(BaseModel):
    """An answer to a request that is refused, or has failed."""

    error: ErrorBody


class Refusal(HTTPException):
    """A request that is refused, with a message for the client."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        super().__init__(status, message, headers)


def error_answer(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Returns the answer of an error."""
    kind = KINDS.get(status, "error")
    return JSONResponse(
        {"error": {"status": status, "type": kind, "message": message}}, status_code=status, headers=headers
    )


def install(app: FastAPI) -> None:
    """Has the application answer errors in this form."""
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return error_answer(error.status_code, error.detail, dict(error.headers or {}))


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    said = [f"{'.'.join(map(str, each['loc'][1:])) or each['loc'][0]}: {each['msg']}" for each in error.errors()[:5]]
    return error_answer(422, "; ".join(said))
