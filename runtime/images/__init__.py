"""Inputs of models: image files to arrays, and many items through a model in batches."""
