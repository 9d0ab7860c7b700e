"""The predictor's answer to the protocol's questions: models of a repository behind `oip`'s `DataPlane`.

Joins the checks, the scheduler and the life of models; decides nothing itself.  Knows no transport and no
torch.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as distribution_version
from typing import Any

import numpy as np

from oip.errors import Unavailable
from oip.messages import InferenceRequest, InferenceResponse, ModelMetadata, ServerMetadata, TensorMetadata
from oip.server.data_plane import RequestContext
from oip.server.extensions import SHARED_MEMORY_IS_OFF, Extensions, ModelStatistics, NoSharedMemory
from oip.server.process_settings import NoTracing, ProcessLogSettings
from oip.server.shared_memory import SystemSharedMemory
from oip.tensors import Tensor
from torchscript_predictor.backends import Backend
from torchscript_predictor.classification import classes, requested_classes
from torchscript_predictor.client_control import ClientControl
from torchscript_predictor.config_json import config_json
from torchscript_predictor.control import ControlMode
from torchscript_predictor.lifecycle import ModelLifecycle
from torchscript_predictor.loading import ModelVersion
from torchscript_predictor.metrics import exposition
from torchscript_predictor.repository import ModelRepository
from torchscript_predictor.scheduling.parameters import schedule_parameters
from torchscript_predictor.states import ModelStatus
from torchscript_predictor.threads import CpuAllowance

SERVER_NAME = "tandem"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "logging",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
    "trace",
)
"""Those that are always served."""

SYSTEM_SHARED_MEMORY = "system_shared_memory"


class PredictorDataPlane:
    """Implements `oip.server.data_plane.DataPlane`.

    `start` begins to load and returns at once; `loaded` waits until that is over.
    """

    def __init__(
        self,
        repository: ModelRepository,
        backend: Callable[[], Backend],
        *,
        models: Sequence[str] | None = None,
        strict_readiness: bool = True,
        load_threads: int = 4,
        max_queue_size: int = 1024,
        drain_seconds: float = 30.0,
        control_mode: ControlMode = "none",
        poll_seconds: float = 15.0,
        client_shared_memory: bool = False,
        allowance: CpuAllowance | None = None,
        execution_threads: int | None = None,
    ) -> None:
        """
        Args:
            backend: makes the backend; called once, in a loading thread.
            models: names to load; None for all that the repository holds.
            strict_readiness: ready only when every model is; else as soon as loading is over.
            max_queue_size: requests that may wait for one model version.
            drain_seconds: how long `stop`, or a model's unload, waits for requests in flight.
            control_mode: "explicit" lets clients load and unload, "poll" follows changes of the repository.
            poll_seconds: how often, in mode "poll"; 0 for never.
            client_shared_memory: whether clients may hand tensors over in shared memory.
            allowance: CPUs for intra-op threads; None reads the machine's.
            execution_threads: threads that may execute models at a time; None for as many as there are CPUs.
        """
        self._lifecycle = ModelLifecycle(
            repository,
            backend,
            load_threads=load_threads,
            max_queue_size=max_queue_size,
            drain_seconds=drain_seconds,
            allowance=allowance,
            execution_threads=execution_threads,
        )
        self._models = models
        self._strict_readiness = strict_readiness
        self._drain_seconds = drain_seconds
        self._poll_seconds = poll_seconds if control_mode == "poll" else 0.0
        names = (*EXTENSIONS, SYSTEM_SHARED_MEMORY) if client_shared_memory else EXTENSIONS
        self._metadata = ServerMetadata(SERVER_NAME, _own_version(), names)
        self.extensions = Extensions(
            statistics=self,
            models=ClientControl(self._lifecycle, control_mode),
            shared_memory=SystemSharedMemory() if client_shared_memory else NoSharedMemory(SHARED_MEMORY_IS_OFF),
            trace=NoTracing(self._lifecycle.names),
            logging=ProcessLogSettings(),
        )

    def live(self) -> bool:
        return True

    def ready(self) -> bool:
        return self._lifecycle.loading_is_over() and (not self._strict_readiness or self._lifecycle.all_ready())

    def server_metadata(self) -> ServerMetadata:
        return self._metadata

    def model_names(self) -> list[str]:
        return self._lifecycle.names()

    def statuses(self) -> list[ModelStatus]:
        """State and reason of every model version."""
        return self._lifecycle.statuses()

    async def loaded(self) -> list[ModelStatus]:
        """Wait until every model is ready or has failed, then give their states."""
        return await self._lifecycle.loaded()

    def metrics_text(self) -> str:
        """The statistics of every ready version as Prometheus text."""
        return exposition(self._lifecycle.figures())

    def statistics(self, name: str = "", version: str = "") -> list[ModelStatistics]:
        """See `StatisticsSource.statistics`."""
        if not name:
            found = self._lifecycle.served()
        elif version:
            found = [self._lifecycle.version(name, version)]
        else:
            self._lifecycle.version(name)
            found = self._lifecycle.model(name).ready_versions()
        return [each.recorder.snapshot() for each in found]

    def model_ready(self, name: str, version: str = "") -> bool:
        """
        Raises:
            NotFound: no such model or version.
        """
        try:
            self._lifecycle.version(name, version)
        except Unavailable:
            return False
        return True

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        """
        Raises:
            NotFound: no such model or version.
            Unavailable: it is not ready.
        """
        found = self._lifecycle.version(name, version)
        config = found.config
        versions = [found] if version else self._lifecycle.model(name).ready_versions()
        return ModelMetadata(
            name=name,
            versions=tuple(str(each.number) for each in versions),
            platform=config.platform,
            inputs=tuple(TensorMetadata(t.name, t.datatype, t.shape(config.max_batch_size)) for t in config.inputs),
            outputs=tuple(TensorMetadata(t.name, t.datatype, t.shape(config.max_batch_size)) for t in config.outputs),
        )

    def model_config(self, name: str, version: str = "") -> Mapping[str, Any]:
        """
        Raises:
            NotFound: no such model or version.
            Unavailable: it is not ready.
        """
        return config_json(self._lifecycle.version(name, version).config.message)

    async def infer(self, request: InferenceRequest, context: RequestContext) -> InferenceResponse:
        """
        Raises:
            NotFound: no such model or version.
            InvalidArgument: the request does not fit the model's configuration, or its answer does not.
            Unavailable: the model is not ready, its queue is full, or the request waited too long there.
            DeadlineExceeded: the context's deadline has passed.
            Internal: the model failed.
        """
        version = self._lifecycle.version(request.model_name, request.model_version)
        arrived = time.perf_counter()
        try:
            names = version.checker.outputs(request)
            counts = {
                output.name: requested_classes(output.parameters, output.name)
                for output in request.outputs
                if output.parameters
            }
            inputs = version.checker.inputs(request)
            priority, timeout = schedule_parameters(request.parameters)
            entry = version.scheduler.submit(inputs, context.deadline, priority=priority, timeout_microseconds=timeout)
            try:
                arrays = await version.scheduler.finish(entry)
            finally:
                context.stopwatch.record([("queue", entry.queue_seconds), ("compute", entry.compute_seconds)])
            outputs = tuple(_answer(version, name, arrays[name], counts.get(name, 0)) for name in names)
        except BaseException as error:
            version.recorder.failure(error, time.perf_counter() - arrived)
            raise
        version.recorder.success(
            entry.rows,
            time.time(),
            time.perf_counter() - arrived,
            entry.queue_seconds,
            entry.gather_seconds,
            entry.compute_seconds,
            entry.scatter_seconds,
        )
        return InferenceResponse(
            model_name=request.model_name, model_version=str(version.number), outputs=outputs, id=request.id
        )

    async def start(self) -> None:
        self._lifecycle.start(self._models, self._poll_seconds)

    async def stop(self) -> None:
        await self._lifecycle.drain(self._drain_seconds)


def _answer(version: ModelVersion, name: str, array: np.ndarray, count: int) -> Tensor:
    tensor = Tensor(name, version.config.output(name).datatype, array.shape, array)
    if not count:
        return tensor
    return classes(tensor, count, version.labels.get(name, ()), batches=version.config.max_batch_size > 0)


def _own_version() -> str:
    try:
        return distribution_version("tandem-serving")
    except PackageNotFoundError:
        return "0+unknown"
