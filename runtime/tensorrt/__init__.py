"""Engines of TensorRT 10 and 11 and of TensorRT-RTX: building them, and sessions that run them on a GPU.

Both libraries have one Python interface under two module names; everything here works with either. Importing this
package imports neither, nor CUDA.
"""
