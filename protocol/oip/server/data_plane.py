"""The seam between the protocol's service and whatever answers: nine questions and one call.

Knows no transport, no model and no picture.  HTTP (and any later transport) asks a `DataPlane`; the
predictor and the transformer each are one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from oip.messages import InferenceRequest, InferenceResponse, ModelMetadata, ServerMetadata
from oip.timing import Stopwatch


@dataclass(slots=True)
class RequestContext:
    """What travels beside a request's body.

    `deadline` is a reading of the monotonic clock (`time.monotonic`), or None for no limit.  `headers`
    has lower-case names.  Whoever works on the request marks its stages on `stopwatch`; the stages of a
    predictor that was called on the way are kept beside them.
    """

    request_id: str = ""
    deadline: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    predictor_stages: Mapping[str, tuple[float, str]] = field(default_factory=dict)


class DataPlane(Protocol):
    """The protocol-neutral operations.  `version` "" means whichever version the server prefers.

    Every method that takes a model raises `NotFound` for one that is not here.
    """

    def live(self) -> bool:
        """Whether the process can answer at all."""

    def ready(self) -> bool:
        """Whether every model that should serve can serve."""

    def server_metadata(self) -> ServerMetadata: ...

    def model_names(self) -> list[str]:
        """Names of all models, ready or not, sorted."""

    def model_ready(self, name: str, version: str = "") -> bool: ...

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata: ...

    def model_config(self, name: str, version: str = "") -> Mapping[str, Any]:
        """The model configuration in the JSON form of Triton's extension.

        Raises:
            Unsupported: this data plane has no such thing.
        """

    async def infer(self, request: InferenceRequest, context: RequestContext) -> InferenceResponse: ...

    async def start(self) -> None:
        """Begin loading; returns at once or when loaded, `ready()` tells.  The service calls it once.

        Cancelled if the service is asked to stop meanwhile; `stop` follows.
        """

    async def stop(self) -> None:
        """Finish what is in flight and release everything.  Called after the last answer went out."""
