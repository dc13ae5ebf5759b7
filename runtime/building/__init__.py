"""Building bundles: options, the check of a model's nodes, and what each backend contributes."""
