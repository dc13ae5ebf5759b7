"""Reading option values that more than one command takes."""

from __future__ import annotations

from na_deploy.errors import UsageError


def parse_indices(text: str | None) -> tuple[int, ...] | None:
    """Parse ``0,1,2,3``; ``None`` stays ``None``.

    Raises:
        UsageError: not numbers separated by commas.
    """
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"cannot read the levels {text!r}; write numbers separated by commas, as 0,1,2,3") from None
