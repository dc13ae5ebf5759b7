"""Networks that people run on NATTEN; see README.md."""
