"""The project's own errors, out of the ones Ray wraps them in. Ray Train's controller loads this, and none of the worker's."""

from collections.abc import Mapping
from typing import Any

from ray.train import UserCallback

from recsys.errors import RecsysError


class StopOnOwnErrors(UserCallback):
    """Ray would start the workers again and again; but bad data and bad settings do not get better."""

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        for exception in worker_exceptions.values():
            if (error := own_error(exception)) is not None:
                raise error


def own_error(error: BaseException) -> RecsysError | None:
    """The project's own error among those that Ray wrapped round it, or None."""
    if isinstance(error, RecsysError):
        return type(error)(*error.args)
    inside = [getattr(error, name, None) for name in ("controller_failure", "_base_exc", "cause", "__cause__")]
    inside += list(getattr(error, "worker_failures", {}).values())
    found = (own_error(other) for other in inside if isinstance(other, BaseException))
    return next((one for one in found if one is not None), None)
