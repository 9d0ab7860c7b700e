"""Real services for tests: a `Service` on a free port in a thread, and a plane made of one function.

Used by every test folder; knows `oip` alone.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from oip.errors import NotFound
from oip.messages import InferenceRequest, InferenceResponse, ModelMetadata, ServerMetadata, TensorMetadata
from oip.server.data_plane import DataPlane, RequestContext
from oip.server.service import Service
from oip.server.settings import ServerSettings
from oip.tensors import Tensor

Compute = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


@dataclass
class FunctionPlane:
    """A data plane with one model, which is a function of its input arrays; records what it was asked."""

    compute: Compute
    inputs: tuple[TensorMetadata, ...] = (TensorMetadata("x", "FP32", (-1, 2)),)
    outputs: tuple[TensorMetadata, ...] = (TensorMetadata("y", "FP32", (-1, 2)),)
    max_batch_size: int = 8
    name: str = "model"
    is_ready: bool = True
    extensions: tuple[str, ...] = ("binary_tensor_data",)
    requests: list[InferenceRequest] = field(default_factory=list)
    contexts: list[RequestContext] = field(default_factory=list)

    def live(self) -> bool:
        return True

    def ready(self) -> bool:
        return self.is_ready

    def server_metadata(self) -> ServerMetadata:
        return ServerMetadata("fake", "1", self.extensions)

    def model_names(self) -> list[str]:
        return [self.name]

    def model_ready(self, name: str, version: str = "") -> bool:
        self._check(name)
        return self.is_ready

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        self._check(name)
        return ModelMetadata(name, ("1",), "pytorch_libtorch", self.inputs, self.outputs)

    def model_config(self, name: str, version: str = "") -> Mapping[str, Any]:
        self._check(name)
        return {"name": name, "max_batch_size": self.max_batch_size}

    async def infer(self, request: InferenceRequest, context: RequestContext) -> InferenceResponse:
        self._check(request.model_name)
        self.requests.append(request)
        self.contexts.append(context)
        outputs = self.compute({tensor.name: tensor.array for tensor in request.inputs})
        if asyncio.iscoroutine(outputs):
            outputs = await outputs
        tensors = tuple(Tensor.of(name, array) for name, array in outputs.items())
        return InferenceResponse(request.model_name, "1", tensors, request.id)

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def _check(self, name: str) -> None:
        if name != self.name:
            raise NotFound(f"Request for unknown model: '{name}' is not found")


class Running:
    """A service that runs in a thread of its own; `url` is where."""

    def __init__(self, make: Callable[[], Service]) -> None:
        self._make = make
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.status: int | None = None
        self.error: BaseException | None = None

    def start(self) -> "Running":
        self._thread.start()
        self._listening.wait(20)
        if self.error:
            raise self.error
        return self

    def stop(self) -> int | None:
        if self._thread.is_alive():
            with suppress(RuntimeError):  # it is ending by itself, its loop is closed already
                self.loop.call_soon_threadsafe(self.service.stop)
            self._thread.join(40)
        return self.status

    @property
    def url(self) -> str:
        return next(address for address in self.service.addresses if address.startswith("http"))

    @property
    def grpc_target(self) -> str:
        """Host and port, as a gRPC client takes them."""
        prefix = "grpc://"
        return next(a.removeprefix(prefix) for a in self.service.addresses if a.startswith(prefix))

    def _run(self) -> None:
        async def main() -> int:
            self.loop = asyncio.get_running_loop()
            self.service = self._make()
            serving = asyncio.ensure_future(self.service.run())
            while not any(address.startswith("http") for address in self.service.addresses):
                await asyncio.sleep(0.005)
                if serving.done():
                    break
            self._listening.set()
            return await serving

        try:
            self.status = asyncio.run(main())
        except BaseException as error:
            self.error = error
        finally:
            self._listening.set()


@contextmanager
def serving(
    plane: Callable[[], DataPlane] | DataPlane, settings: ServerSettings | None = None, **service: Any
) -> Iterator[Running]:
    """Serve a plane (or what a function makes inside the event loop) on a free port of the loopback address."""
    settings = settings or ServerSettings(http_port=0, http_address="127.0.0.1")
    running = Running(lambda: Service(plane() if callable(plane) else plane, settings, **service)).start()
    try:
        yield running
    finally:
        running.stop()
