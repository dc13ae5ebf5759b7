"""The errors a user sees: one sentence saying what was given, what was expected and what to do.

Every failure that na-deploy foresees is raised as :class:`NaDeployError` or a subclass. The command line prints the
message and leaves with the class's exit code; anything else that escapes is a defect and is reported as one.
"""


class NaDeployError(Exception):
    """The work failed: a file is damaged, a result is out of tolerance, a library is missing (exit code 1)."""

    exit_code = 1


class UsageError(NaDeployError):
    """The request cannot be carried out as given: wrong option, unknown name, impossible size (exit code 2)."""

    exit_code = 2


class CheckpointError(NaDeployError):
    """A checkpoint cannot be read, or does not hold the model it was taken for (exit code 1)."""


class AmbiguousArchitectureError(UsageError):
    """The weights fit several architectures and nothing else tells them apart (exit code 2)."""


class MissingDependencyError(NaDeployError):
    """An optional library is needed and is not installed; the message says what to install (exit code 1)."""


class VerificationError(NaDeployError):
    """An exported model does not reproduce the PyTorch model within tolerance (exit code 1)."""


def one_line(error: BaseException, most: int = 400) -> str:
    """Return another library's message without its line breaks, cut to ``most`` characters, for use in a sentence."""
    return " ".join(str(error).split())[:most]
