"""Guard of an application: limits, the token of changes, headers, and figures, around every request."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Collection, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smart_jax.serve.change_routes import CHANGES
from smart_jax.serve.errors import Refusal, error_answer
from smart_jax.serve.service import Service
from smart_jax.serve.status_routes import STATUS

UPLOAD = "/upload"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
logger = logging.getLogger("smart_jax.serve")


class Guard:
    """The outermost part of an application."""

    def __init__(self, app: ASGIApp, service: Service, hosts: Collection[str] | None):
        """Takes the application.

        Args:
          app: that is guarded.
          service: of it.
          hosts: names by which the server may be called, so that no page elsewhere can have a name of its own lead
            here; None = any.
        """
        self._app, self._service, self._hosts = app, service, hosts
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        began = time.monotonic()
        counted = scope["path"] not in STATUS
        self._in_flight += counted
        self._service.metrics.in_flight.set(self._in_flight)
        try:
            if (refusal := self._refusal(scope)) is not None:
                await self._refuse(refusal, scope, receive, answer)
            else:
                await self._answer(scope, receive, answer)
        finally:
            self._in_flight -= counted
            self._service.metrics.in_flight.set(self._in_flight)
            route = getattr(scope.get("route"), "path", "other")
            self._service.metrics.requests.labels(route, scope["method"], str(answer.status)).inc()
            self._service.metrics.seconds.labels(route).observe(time.monotonic() - began)

    def _refusal(self, scope: Scope) -> Refusal | None:
        """Returns why a request is refused before its body is read, if it is."""
        headers, limit = Headers(scope=scope), self._most_bytes(scope)
        if self._hosts is not None and _host(headers.get("host", "")) not in self._hosts:
            return Refusal(421, "the server is not called by this name: use its address, or add the name to hosts")
        if scope["path"] not in STATUS and self._in_flight > self._service.limits.concurrent:
            message = f"more than {self._service.limits.concurrent} requests are being worked on: try again"
            return Refusal(429, message, {"Retry-After": "1"})
        changes = scope["path"] in CHANGES and scope["method"] == "POST"
        if changes and (refusal := self._not_allowed(headers.get("authorization", ""))) is not None:
            return refusal
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > limit:
            return too_large(limit)
        return None

    def _not_allowed(self, authorization: str) -> Refusal | None:
        if self._service.token is None:
            return Refusal(403, "nothing can be changed here: start the server with a token")
        scheme, _, given = authorization.partition(" ")
        wanted = self._service.token.encode()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), wanted):
            return Refusal(401, "changes ask for the server's token", {"WWW-Authenticate": "Bearer"})
        return None

    def _most_bytes(self, scope: Scope) -> int:
        limits = self._service.limits
        return limits.upload_bytes if scope["path"] == UPLOAD else limits.body_bytes

    async def _answer(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        limits = self._service.limits
        seconds = limits.upload_seconds if scope["path"] == UPLOAD else limits.seconds
        body = _Body(receive, self._most_bytes(scope))
        try:
            async with asyncio.timeout(seconds):
                await self._app(scope, body.receive, answer.send)
        except TimeoutError:
            message = f"this took longer than {seconds:g} seconds: ask for less, or later; an upload goes on by itself"
            await self._refuse(Refusal(504, message), scope, receive, answer)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await self._refuse(Refusal(500, "the server failed: its log says how"), scope, receive, answer)

    async def _refuse(self, refusal: Refusal, scope: Scope, receive: Receive, answer: _Answer) -> None:
        if answer.status is None:
            response = error_answer(refusal.status_code, refusal.detail, dict(refusal.headers or {}))
            await response(scope, receive, answer.send)


class _Body:
    """Body of a request, of which no more is read than allowed."""

    def __init__(self, receive: Receive, most: int):
        self._receive, self._most, self._read = receive, most, 0

    async def receive(self) -> Message:
        message = await self._receive()
        self._read += len(message.get("body", b""))
        if self._read > self._most:
            raise too_large(self._most)
        return message


class _Answer:
    """Answer to a request, with the headers that every one has."""

    def __init__(self, send: Send):
        self._send = send
        self.status: int | None = None

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("Cache-Control", "no-store")
        await self._send(message)


def too_large(most: int) -> Refusal:
    """Returns the refusal of a body of more bytes."""
    return Refusal(413, f"the request is larger than {most} bytes: send less at once")


def _host(header: str) -> str:
    """Returns the name in a Host header, without its port."""
    name = header.rpartition(":")[0] if ":" in header.rpartition("]")[2] else header
    return name.strip("[]").lower()
