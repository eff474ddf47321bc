"""What can go wrong, said as: what, where, what next."""


class RecsysError(Exception):
    """An error meant for the person at the keyboard: shown without a traceback."""

    exit_code = 5


class ConfigError(RecsysError):
    """A setting that does not exist or cannot be; also wrong usage of a command."""

    exit_code = 2


class DataError(RecsysError):
    """A source or a dataset folder that cannot be used as it is."""

    exit_code = 3


class BundleError(RecsysError):
    """A bundle that is missing, altered, unsafe or of another format version."""

    exit_code = 4


class Interrupted(RecsysError):  # noqa: N818 - nothing failed
    """Work that was asked to stop, by a signal, and can be gone on with."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class RequestError(RecsysError):
    """One request for recommendations that cannot be answered; its neighbours in a batch are.

    code: a short name for programs, such as `unknown_item`; the message says what to do.
    """

    exit_code = 2

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
