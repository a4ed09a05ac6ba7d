"""An index on the web: a page to search it with, and an API, which need the extra `serve`."""

from smart_jax.serve.app import create_app
from smart_jax.serve.limits import Limits
from smart_jax.serve.server import serve, serving

__all__ = ["Limits", "create_app", "serve", "serving"]
