"""Backends that run a model: a module each, with ``open_session(path, options) -> Session``."""
