"""Model instances: threads that each execute one entry at a time.

An instance prepares its thread, warms up, then takes from its scheduler until told to end.  Whatever a
model raises becomes that request's answer; the thread lives on.  Knows no torch and no protocol.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future

import numpy as np

from oip.errors import InferenceError, Internal
from torchscript_predictor.backends import LoadedModel
from torchscript_predictor.scheduler import Entry, Scheduler

logger = logging.getLogger(__name__)


class ModelInstance:
    """One loaded copy of a model with the thread that executes it."""

    def __init__(
        self,
        name: str,
        model: LoadedModel,
        scheduler: Scheduler,
        *,
        intra_op_threads: int,
        warm_up: Callable[[LoadedModel], None],
    ) -> None:
        self._name = name
        self._model = model
        self._scheduler = scheduler
        self._intra_op_threads = intra_op_threads
        self._warm_up = warm_up
        self._started: Future[None] = Future()
        # a daemon, because a forward that never ends must not keep the process from ending
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> Future[None]:
        """Start the thread; the future resolves when it is warm, or fails with what warm-up raised."""
        self._thread.start()
        return self._started

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the thread to end, after the scheduler was closed; whether it has."""
        self._thread.join(max(0.0, timeout_seconds))
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._model.enter_thread(self._intra_op_threads)
            self._warm_up(self._model)
        except BaseException as error:  # handed to whoever loads
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        while self._serve_one():
            pass

    def _serve_one(self) -> bool:
        """Execute the next entry.  A call of its own, so that no local keeps tensors alive while waiting."""
        taken = self._scheduler.take()
        if taken is None:
            return False
        entry, inputs = taken
        self._execute(entry, inputs)
        return True

    def _execute(self, entry: Entry, inputs: Mapping[str, np.ndarray]) -> None:
        started = time.perf_counter()
        answer: dict[str, np.ndarray] | InferenceError
        try:
            answer = self._model.execute(inputs)
        except InferenceError as error:
            logger.debug("%s: %s", self._name, error, exc_info=error.__cause__)
            answer = error
        except BaseException as error:  # SystemExit too: a model must not end its thread
            logger.exception("%s failed in a way that its backend does not know; this is a bug", self._name)
            answer = Internal(f"the model failed with {type(error).__name__}")
        entry.compute_seconds = time.perf_counter() - started
        entry.resolve(answer)
