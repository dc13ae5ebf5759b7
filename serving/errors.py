"""Failures of requests, with the status that each protocol reports. Messages are for clients: one sentence.

Nothing that reaches a client names a folder of this machine: :func:`public_text` sees to that for messages that come
from elsewhere.
"""

from __future__ import annotations

import re

from na_deploy.errors import NaDeployError


class RequestError(NaDeployError):
    """A request that is not carried out. Subclasses say why.

    Attributes:
        status: the HTTP status.
        code: the name of the gRPC status.
    """

    status = 500
    code = "INTERNAL"


class InvalidRequestError(RequestError):
    """The request is malformed or does not fit the model."""

    status = 400
    code = "INVALID_ARGUMENT"


class ForbiddenError(RequestError):
    """The operator has not allowed this."""

    status = 403
    code = "PERMISSION_DENIED"


class NotFoundError(RequestError):
    """There is no such model, version or address."""

    status = 404
    code = "NOT_FOUND"


class SlowClientError(RequestError):
    """The client took too long to send its request."""

    status = 408
    code = "DEADLINE_EXCEEDED"


class TooLargeError(RequestError):
    """The request is larger than the server takes."""

    status = 413
    code = "RESOURCE_EXHAUSTED"


class ClientGoneError(RequestError):
    """The client went before its answer was there. Nobody reads this; the status is what servers log for it."""

    status = 499
    code = "CANCELLED"


class ModelFailedError(RequestError):
    """The model could not be run on this input."""

    status = 500
    code = "INTERNAL"


class UnsupportedError(RequestError):
    """A part of the protocol that this server does not offer."""

    status = 501
    code = "UNIMPLEMENTED"


class UnavailableError(RequestError):
    """Not now: the queue is full, the model is loading, or the server is stopping."""

    status = 503
    code = "UNAVAILABLE"


class QueueTimeoutError(RequestError):
    """The request waited longer than its own timeout allows."""

    status = 504
    code = "DEADLINE_EXCEEDED"


_ABSOLUTE = re.compile(r"(?<![\w.:/])(?:[A-Za-z]:)?(?:[/\\][^\s/\\:'\"(),;]+)*[/\\](?=[^\s/\\:'\"(),;]+)")


def public_text(error: BaseException | str) -> str:
    """Return a message for clients: one line, folders left out of every path in it."""
    text = " ".join(str(error).split()) or (error if isinstance(error, str) else type(error).__name__)
    return _ABSOLUTE.sub("", text)[:1000]
