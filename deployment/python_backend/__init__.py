"""What Triton's python backend runs. Copied into repositories, never imported here: it needs Triton around it."""
