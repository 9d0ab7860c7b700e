"""Model instances: threads that each execute one batch at a time.

An instance prepares its thread, warms up, then takes from its scheduler until told to end, and executes when
the process-wide limit lets it.  Whatever a model raises becomes the answer of the request at fault; the
thread lives on.  Knows no torch and no protocol.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from oip.errors import InferenceError, Internal
from torchscript_predictor.backends import LoadedModel
from torchscript_predictor.scheduling.batch import gather, scatter
from torchscript_predictor.scheduling.decide import Refusal
from torchscript_predictor.scheduling.scheduler import Batch, Entry, Scheduler, Seat, refusal
from torchscript_predictor.statistics import Recorder
from torchscript_predictor.threads import ExecutionLimit

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
        limit: ExecutionLimit,
        recorder: Recorder | None = None,
        executing_threads: int | None = None,
    ) -> None:
        """
        Args:
            limit: what this process may execute at a time.
            recorder: counts executions, if given.
            executing_threads: how much of that an execution takes; None for `intra_op_threads`, 0 where the
                model computes elsewhere than on this machine's CPUs.
        """
        self._name = name
        self._model = model
        self._scheduler = scheduler
        self._intra_op_threads = intra_op_threads
        self._warm_up = warm_up
        self._limit = limit
        self._recorder = recorder
        self._executing_threads = intra_op_threads if executing_threads is None else executing_threads
        self._failed_batches = 0
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
            with self._limit.held(self._executing_threads):
                self._warm_up(self._model)
        except BaseException as error:  # handed to whoever loads
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        seat = Seat()
        while self._scheduler.wait(seat):
            self._limit.acquire(self._executing_threads)
            try:
                self._serve_one(seat)
            finally:
                self._limit.release(self._executing_threads)
        del self._model  # whoever still knows this instance must not keep the weights in memory

    def _serve_one(self, seat: Seat) -> None:
        """Execute the next batch.  A call of its own, so that no local keeps tensors alive while waiting."""
        batch = self._scheduler.take(seat)  # decided as late as this: others may have joined meanwhile
        if batch is not None:
            self._execute(batch)

    def _execute(self, batch: Batch) -> None:
        started = time.perf_counter()
        rows = batch.rows
        try:
            inputs = gather(batch.inputs)
            gathered = time.perf_counter()
            outputs = self._model.execute(inputs)
            executed = time.perf_counter()
            answers = scatter(outputs, rows)
        except BaseException as error:  # SystemExit too: a model must not end its thread
            self._take_time(batch.entries, started)
            if len(batch.entries) == 1:
                self._scheduler.answer([(batch.entries[0], self._failure(error))])
            else:
                self._note_failed_batch(len(batch.entries), error)
                self._execute_one_by_one(batch)
            return
        done = self._take_time(batch.entries, started)
        for entry in batch.entries:
            entry.gather_seconds = gathered - started
            entry.scatter_seconds = done - executed
        if self._recorder is not None:  # before the answer: who has it must find it counted
            self._recorder.execution(sum(rows), gathered - started, executed - gathered, done - executed)
        self._scheduler.answer(list(zip(batch.entries, answers, strict=True)), sum(rows))

    def _execute_one_by_one(self, batch: Batch) -> None:
        """So that only the request at fault fails; each is answered as soon as it can be."""
        for entry, inputs in zip(batch.entries, batch.inputs, strict=True):
            if entry.gone:
                continue
            if self._scheduler.is_late(entry):
                self._scheduler.refuse([(entry, refusal(Refusal.DEADLINE))])
                continue
            self._execute(Batch([entry], [inputs]))

    def _note_failed_batch(self, count: int, error: BaseException) -> None:
        """The first time for the operator: a model that cannot batch executes everything twice."""
        level = logging.DEBUG if self._failed_batches else logging.WARNING
        self._failed_batches += 1
        logger.log(level, "%s: a batch of %d requests failed (%s); each is executed alone", self._name, count, error)

    @staticmethod
    def _take_time(entries: Sequence[Entry], started: float) -> float:
        """Add the time since `started` to what the entries took; returns the time."""
        now = time.perf_counter()
        for entry in entries:
            entry.compute_seconds += now - started
        return now

    def _failure(self, error: BaseException) -> InferenceError:
        if isinstance(error, InferenceError):
            logger.debug("%s: %s", self._name, error, exc_info=error.__cause__)
            return error
        logger.error("%s failed in a way that its backend does not know; this is a bug", self._name, exc_info=error)
        return Internal(f"the model failed with {type(error).__name__}")
