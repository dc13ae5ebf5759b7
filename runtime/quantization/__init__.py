"""Quantization: int8 and fp8 matrix products between float attention, normalisation and softmax; needs no PyTorch."""
