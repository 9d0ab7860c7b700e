"""The transformer as a `DataPlane`, and the V1 routes that only a transformer has.

Knows the V1 protocol and which models are here; knows no picture and no tensor.  V1 quirks that
clients rely on are kept: `GET /v1/models/<name>` answers `{"name", "ready"}`, `GET /` says alive.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from typing import Any

from aiohttp import web
from prometheus_client import Histogram

from kserve_transformer.predictor import State
from kserve_transformer.transformer import Transformer
from oip import json_text
from oip.errors import NotFound, Unavailable, Unsupported, UnsupportedMediaType
from oip.messages import InferenceRequest, InferenceResponse, ModelMetadata, ServerMetadata
from oip.server.data_plane import RequestContext
from oip.server.http import CONTEXT, Http, json_response
from oip.server.metrics import SECONDS, ServerMetrics

_KSERVE_STAGES = ("preprocess", "predict", "postprocess", "explain")
_NOT_JSON = ("image/", "multipart/", "audio/", "video/")


class TransformerDataPlane:
    """Several transformers by name, one pool each."""

    def __init__(self, transformers: Sequence[Transformer], *, threads: int, metrics: ServerMetrics) -> None:
        self.transformers = {transformer.name: transformer for transformer in transformers}
        self._threads = threads
        histograms = {
            stage: Histogram(
                f"request_{stage}_seconds",
                f"Seconds a request spent in {stage}, as KServe names it.",
                ("model_name",),
                buckets=SECONDS,
                registry=metrics.registry,
            )
            for stage in _KSERVE_STAGES
        }
        self._histogram = cache(lambda stage, model: histograms[stage].labels(model))

    # --- DataPlane ----------------------------------------------------------------------------------------------------

    def live(self) -> bool:
        return True

    def ready(self) -> bool:
        return all(transformer.predictor.state is State.READY for transformer in self.transformers.values())

    def server_metadata(self) -> ServerMetadata:
        try:
            version = metadata.version("tandem-serving")
        except metadata.PackageNotFoundError:
            version = "0+unknown"
        return ServerMetadata("tandem-transformer", version, ())

    def model_names(self) -> list[str]:
        return sorted(self.transformers)

    def model_ready(self, name: str, version: str = "") -> bool:
        return self._find(name, version).predictor.state is State.READY

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        self._find(name, version)
        return ModelMetadata(name, (), "tandem_transformer", (), ())

    def model_config(self, name: str, version: str = "") -> Mapping[str, Any]:
        self._find(name, version)
        raise Unsupported("a transformer has no model configuration; ask the predictor")

    async def infer(self, request: InferenceRequest, context: RequestContext) -> InferenceResponse:
        self._find(request.model_name, request.model_version)
        raise Unsupported(
            f"this transformer is called with V1: POST /v1/models/{request.model_name}:predict with "
            '{"instances": [...]}; tensors go to the predictor itself'
        )

    async def start(self) -> None:
        for transformer in self.transformers.values():
            transformer.start(self._threads)

    async def stop(self) -> None:
        for transformer in self.transformers.values():
            await transformer.stop()

    def _find(self, name: str, version: str = "") -> Transformer:
        transformer = self.transformers.get(name)
        if transformer is None:
            raise NotFound(f"Model with name {name[:128]} does not exist; there are {', '.join(self.model_names())}")
        if version:
            raise NotFound(f"Model with name {name} has no version {version}; a transformer has none")
        return transformer

    # --- V1 -----------------------------------------------------------------------------------------------------------

    def routes(self, http: Http) -> list[web.RouteDef]:
        """The V1 routes."""

        async def alive(request: web.Request) -> web.Response:
            return json_response({"status": "alive"})

        async def models(request: web.Request) -> web.Response:
            return json_response({"models": self.model_names()})

        async def model(request: web.Request) -> web.Response:
            transformer = self._find(request.match_info["name"])
            if transformer.predictor.state is not State.READY:
                raise Unavailable(f"Model with name {transformer.name} is not ready: {transformer.predictor.reason}")
            return json_response({"name": transformer.name, "ready": True})

        async def predict(request: web.Request) -> web.Response:
            transformer = self._find(request.match_info["name"])
            context = request[CONTEXT]
            if request.content_type.startswith(_NOT_JSON):
                raise UnsupportedMediaType(
                    f"{request.content_type} is not read here; send JSON with the picture in base64, "
                    '{"instances": [{"image": {"b64": "..."}}]}'
                )
            body = await http.read_body(request)
            context.stopwatch.lap("read")
            payload = json_text.loads(body)
            context.stopwatch.lap("parse")
            answer = await transformer.predict(payload, context)
            response = json_response(answer)
            context.stopwatch.lap("encode")
            for stage, seconds, _ in context.stopwatch.laps:
                if stage in _KSERVE_STAGES:
                    self._histogram(stage, transformer.name).observe(seconds)
            return response

        async def explain(request: web.Request) -> web.Response:
            self._find(request.match_info["name"])
            raise Unsupported("no explainer is configured; this transformer only predicts")

        return [
            web.get("/", alive),
            web.get("/v1/models", models),
            web.get("/v1/models/{name:[^/:]+}", model),
            web.post("/v1/models/{name:[^/:]+}:predict", predict),
            web.post("/v1/models/{name:[^/:]+}:explain", explain),
        ]
