"""Stands in for cuda-python's package in tests."""
