"""The predictor's answer to the protocol's questions: models of a repository behind `oip`'s `DataPlane`.

Joins the checks, the scheduler and the life of models; decides nothing itself.  Knows no transport and no
torch.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as distribution_version
from typing import Any

from oip.errors import Unavailable
from oip.messages import InferenceRequest, InferenceResponse, ModelMetadata, ServerMetadata, TensorMetadata
from oip.server.data_plane import RequestContext
from oip.tensors import Tensor
from torchscript_predictor.backends import Backend
from torchscript_predictor.config_json import config_json
from torchscript_predictor.lifecycle import ModelLifecycle, ModelVersion
from torchscript_predictor.repository import ModelRepository
from torchscript_predictor.states import ModelStatus
from torchscript_predictor.threads import CpuAllowance

SERVER_NAME = "tandem"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "parameters")


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
        allowance: CpuAllowance | None = None,
    ) -> None:
        """
        Args:
            backend: makes the backend; called once, in a loading thread.
            models: names to load; None for all that the repository holds.
            strict_readiness: ready only when every model is; else as soon as loading is over.
            max_queue_size: requests that may wait for one model version.
            drain_seconds: how long `stop` waits for requests in flight.
            allowance: CPUs for intra-op threads; None reads the machine's.
        """
        self._lifecycle = ModelLifecycle(
            repository, backend, load_threads=load_threads, max_queue_size=max_queue_size, allowance=allowance
        )
        self._models = models
        self._strict_readiness = strict_readiness
        self._drain_seconds = drain_seconds
        self._metadata = ServerMetadata(SERVER_NAME, _own_version(), EXTENSIONS)

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
            Unsupported: it asks for an extension that is not served.
            Unavailable: the model is not ready, or its queue is full.
            DeadlineExceeded: the context's deadline has passed.
            Internal: the model failed.
        """
        version = self._lifecycle.version(request.model_name, request.model_version)
        names = version.checker.outputs(request)
        inputs = version.checker.inputs(request)
        entry = version.scheduler.submit(inputs, context.deadline)
        try:
            outputs = await version.scheduler.finish(entry)
        finally:
            context.stopwatch.record([("queue", entry.queue_seconds), ("compute", entry.compute_seconds)])
        return InferenceResponse(
            model_name=request.model_name,
            model_version=str(version.number),
            outputs=tuple(_answer(version, name, outputs[name]) for name in names),
            id=request.id,
        )

    async def start(self) -> None:
        self._lifecycle.start(self._models)

    async def stop(self) -> None:
        await self._lifecycle.drain(self._drain_seconds)


def _answer(version: ModelVersion, name: str, array: Any) -> Tensor:
    return Tensor(name, version.config.output(name).datatype, array.shape, array)


def _own_version() -> str:
    try:
        return distribution_version("tandem-serving")
    except PackageNotFoundError:
        return "0+unknown"
