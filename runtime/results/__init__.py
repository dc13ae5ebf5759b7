"""Results of models: output arrays become classes, segments and features."""
