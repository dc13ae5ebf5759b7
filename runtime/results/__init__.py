"""Results of models: from output arrays to what people read."""
