"""What can go wrong, said as: what, where, what next."""

from collections.abc import Callable

TOO_SLOW = "timed out during startup"  # Ray's words
TRIES = 2


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


def ray_started(start: Callable[[], object], address: str | None) -> None:
    """Start or join Ray by a call; once more where its helpers were not up in the 15 s that it gives them, whatever else the
    machine has to do (ray-project/ray#65983).

    address: of the Ray that is joined; None: one that starts here. Raises RecsysError in place of Ray's own errors.
    """
    for left in reversed(range(TRIES)):
        try:
            start()
            return
        except (ConnectionError, OSError) as error:
            raise RecsysError(f"Ray at {address or 'this machine'} cannot be reached or started: {error}") from error
        except Exception as error:  # Ray's own class for it
            if TOO_SLOW not in str(error):
                raise
            if not left:
                raise RecsysError(f"Ray did not start in time, {TRIES} times: this machine is too busy. Try again.") from error
