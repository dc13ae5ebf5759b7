"""TensorRT-RTX in tests."""

from fake_tensorrt import make_module

globals().update(make_module(__name__, "tensorrt_rtx_1"))
