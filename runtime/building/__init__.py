"""Building bundles: options, the check of a model's nodes, and each backend's part."""
