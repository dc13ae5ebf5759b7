"""Code that Triton's python backend runs: models that are copied into repositories, and what they import."""
