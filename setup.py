"""A thin shim for tools that still look for setup.py; everything is in pyproject.toml.

``pip install .`` is the supported way to install.
"""

import subprocess
import sys

if __name__ == "__main__":
    raise SystemExit(subprocess.call([sys.executable, "-m", "pip", "install", "."]))
