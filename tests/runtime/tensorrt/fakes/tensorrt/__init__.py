"""TensorRT in tests: the version that FAKE_TENSORRT names, 10 or 11."""

import os

from fake_tensorrt import make_module

globals().update(make_module(__name__, f"tensorrt_{os.environ.get('FAKE_TENSORRT', '11')}"))
