"""Inputs of models: image files to arrays, and runs of many items in batches."""
