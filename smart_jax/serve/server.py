"""A server of an index: in the foreground until it is told to end, or in a thread."""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from smart_jax.index import Index
from smart_jax.serve.app import create_app

GRACE_SECONDS = 30  # for requests that are being answered when the server is told to end
BACKLOG = 2048
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def serve(
    index: Index,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    grace: int = GRACE_SECONDS,
    **options: Any,
) -> None:
    """Serves an index until SIGINT or SIGTERM: a page to search it with at "/", an API that "/docs" describes.

    At the end no request is taken any more, those that are being answered have `grace` seconds, and an upload is added
    to its end, so that no writer's lock is left; another signal ends at once, which an index survives.

    Args:
      index: that is served, and left open.
      host: address to listen at; others than this machine reach it at "0.0.0.0".
      port: to listen at.
      token: that changes ask for; None = nothing can be changed.
      grace: seconds.
      options: of `create_app`: uploads, limits, hosts, warm_up.

    Raises:
      ValueError: the port or the token cannot be used.
      OSError: the port is taken.

    Example:
      >>> import tempfile
      >>> import smart_jax
      >>> serve(smart_jax.Index(tempfile.mkdtemp(), model="tiny"), port=-1)
      Traceback (most recent call last):
      ValueError: port is -1: it must be in 0 to 65535
    """
    listener = _listen(host, port)
    with contextlib.closing(listener):
        if not _is_loopback(host) and token is None:
            warnings.warn(
                f"the server listens at {host}, where others may reach it, and has no token: whoever does can search "
                "the index, and nobody can change it",
                stacklevel=2,
            )
        app = create_app(index, token=token, **_with_hosts(host, options))
        index.model  # noqa: B018  # loaded now, so that an error shows before anybody asks
        server = uvicorn.Server(_config(app, grace))
        with _ending_quietly():
            print(f"{index!r} at {_url(host, listener)}, API at {_url(host, listener)}/docs", flush=True)
            server.run(sockets=[listener])


@contextlib.contextmanager
def serving(index: Index, *, port: int = 0, token: str | None = None, **options: Any) -> Iterator[str]:
    """Serves an index on this machine from a thread, as long as the block runs: for notebooks and tests.

    Args:
      index: that is served, and left open.
      port: to listen at; 0 = one that is free.
      token, options: as in `serve`.

    Yields:
      The address, such as "http://127.0.0.1:8000".

    Example:
      >>> import tempfile, urllib.request
      >>> import smart_jax
      >>> with serving(smart_jax.Index(tempfile.mkdtemp(), model="tiny"), warm_up=False) as url:
      ...     urllib.request.urlopen(f"{url}/health").read()
      b'{"status":"ok","items":0}'
    """
    listener = _listen(LOOPBACK[1], port)
    app = create_app(index, token=token, **_with_hosts(LOOPBACK[1], options))
    server = uvicorn.Server(_config(app, GRACE_SECONDS))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="serve")
    with contextlib.closing(listener):
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.005)
            yield _url(LOOPBACK[1], listener)
        finally:
            server.should_exit = True
            thread.join()


def _config(app: FastAPI, grace: int) -> uvicorn.Config:
    # Logging is left as the process has it.
    options: dict[str, Any] = {"log_config": None, "log_level": "warning", "access_log": False, "server_header": False}
    return uvicorn.Config(app, timeout_graceful_shutdown=grace, **options)


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise ValueError(f"port is {port}: it must be in 0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)  # only now it is known that no other listens here
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen at {host}, port {port} ({error.strerror}): choose another") from None
    return listener


def _is_loopback(host: str) -> bool:
    if host in LOOPBACK:
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _with_hosts(host: str, options: dict[str, Any]) -> dict[str, Any]:
    """Returns options in which a server of this machine alone answers to names of this machine alone."""
    return {"hosts": {*LOOPBACK, host} if _is_loopback(host) else None} | options


def _url(host: str, listener: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"


@contextlib.contextmanager
def _ending_quietly() -> Iterator[None]:
    """Has the signals that end a server end this block, after which the caller goes on to close what it has open."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end) if threading.current_thread() is threading.main_thread() else None
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
