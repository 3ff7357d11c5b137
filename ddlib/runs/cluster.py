"""Ray as an executor: the same tasks over one machine or a cluster whose nodes share the store's folder.

Ray starts the processes, holds places by core and by part of a GPU, and tells when a process is lost. What to do about that is the engine's affair,
as with local processes, so Ray itself never does a task again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Any

from ddlib.settings import InputError


def attempt(
    settle: Callable[[], None], do: Callable, given: tuple
) -> tuple[object, Exception | None]:
    """(what `do` returned, None) or (None, what it raised), so that an error travels as it is."""
    settle()
    try:
        return do(*given), None
    except Exception as error:
        return None, error


class Ray(Executor):
    """The cluster of the environment's RAY_ADDRESS (an address, or `auto`), else one on this machine with a process a worker.

    Raises:
        InputError: Ray is not installed, or there is no cluster at that address.
    """

    def __init__(self, workers: int, gpu_share: float, settle: Callable[[], None]):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError:
            raise InputError(
                "ENGINE=ray, but Ray is not installed: pip install 'ddlib[ray]', or leave ENGINE out; serial and processes need nothing more"
            ) from None
        self.ray, self.settle, address = ray, settle, os.environ.get("RAY_ADDRESS") or "local"
        here: dict[str, Any] = (
            {"num_cpus": workers, "include_dashboard": False} if address == "local" else {}
        )
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **here)
        except ConnectionError as error:
            raise InputError(
                f"no Ray cluster at RAY_ADDRESS={address} ({error}): start one there, or leave RAY_ADDRESS out"
            ) from None
        lost = ray.exceptions
        self.losses = (
            lost.WorkerCrashedError,
            lost.OutOfMemoryError,
            lost.LocalRayletDiedError,
            lost.NodeDiedError,
            lost.ObjectLostError,
        )
        self.attempt = ray.remote(num_cpus=1, num_gpus=gpu_share, max_retries=0)(attempt)

    def submit(self, do: Callable, /, *given: object) -> Future:  # type: ignore[override]  # nothing is given by name
        """Where there is room; a lost process breaks the future as it does in a pool of processes."""
        future: Future = Future()

        def close(answer: Future) -> None:
            try:
                result, error = answer.result()
            except self.losses as lost:
                result, error = None, BrokenExecutor(str(lost))
            except Exception as unable:
                result, error = None, unable
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.attempt.remote(self.settle, do, given).future().add_done_callback(close)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster; one on this machine ends."""
        self.ray.shutdown()
