"""Environment in which a result was made: devices, machine and versions."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import jax

PACKAGES = ("smart_jax", "jax", "flax", "transformers", "numpy", "pillow")


def environment() -> dict[str, Any]:
    """Returns devices, machine, and versions by package."""
    devices = jax.devices()
    return {
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": {package: version(package) for package in PACKAGES},
    }
