"""Comparing models, bundles and PyTorch in one run."""
