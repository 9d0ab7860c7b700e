"""Somebody's `kserve.Model` subclass on our server, unchanged.

Knows kserve, and is imported only for such a class.  Its hooks run off the event loop where they
are plain functions; its calls of the predictor go through our client.
"""

import binascii
import inspect
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from PIL import UnidentifiedImageError

from kserve_transformer.config import ConfigError, TransformerConfig
from kserve_transformer.contract import Contract
from kserve_transformer.transformer import Transformer, require_time
from oip import http_codec, json_text
from oip.errors import InferenceError, Internal, InvalidArgument, NotFound, Unavailable, Unsupported
from oip.messages import InferenceRequest, InferenceResponse
from oip.server.data_plane import RequestContext
from oip.tensors import Tensor


def _import_kserve() -> Any:
    """Kserve reads the command line while it is imported; ours is none of its business."""
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        import kserve
    finally:
        sys.argv = arguments
    return kserve


kserve = _import_kserve()

_context: ContextVar[RequestContext] = ContextVar("context")


def model_class(found: Any, name: str) -> type[Any]:
    """The class if it is a `kserve.Model`.

    Raises:
        ConfigError: it is not.
    """
    if not (isinstance(found, type) and issubclass(found, kserve.Model)):
        raise ConfigError(f"{name}: must be a subclass of kserve_transformer.Transformer or of kserve.Model")
    return found


class StockTransformer(Transformer):
    """Runs a stock model's `preprocess`, `predict` and `postprocess` in the place of our own flow."""

    def __init__(self, config: TransformerConfig, stock_class: type[Any]) -> None:
        super().__init__(config)
        predictor = config.predictor
        self._kserve_config = kserve.predictor_config.PredictorConfig(
            predictor_host=predictor.host,
            predictor_protocol=predictor.protocol,
            predictor_use_ssl=predictor.use_ssl,
            predictor_request_timeout_seconds=int(predictor.timeout_seconds),
            predictor_request_retries=predictor.retries,
        )
        kserve.context.set_predictor_config(self._kserve_config)
        self.model = _instantiate(stock_class, config, self._call_predictor)
        self.model.load()

    def start(self, threads: int) -> None:
        super().start(threads)
        self.model.start()

    async def stop(self) -> None:
        self.model.stop()
        await super().stop()

    def check(self, contract: Contract) -> None:
        """Its tensors are its own affair."""

    async def predict(self, payload: Any, context: RequestContext) -> Any:
        """The stock class's three steps; a failure keeps its meaning instead of becoming a 500."""
        require_time(context)
        _context.set(context)
        kserve.context.set_predictor_config(self._kserve_config)
        model = self.model
        payload = await self._hook("preprocess", model.preprocess, payload, context)
        context.stopwatch.lap("preprocess")
        try:
            payload = model.validate(payload)
        except kserve.errors.InvalidInput as error:
            raise InvalidArgument(str(error)) from None
        result = await self._hook("predict", model.predict, payload, context)
        context.stopwatch.lap("predict")
        result = await self._hook("postprocess", model.postprocess, result, context)
        context.stopwatch.lap("postprocess")
        return result.to_rest()[0] if isinstance(result, kserve.InferResponse) else result

    def _meaning(self, step: str, error: Exception) -> InferenceError | None:
        """Kserve's own errors keep theirs; what a class trips over while it reads the body is the caller's mistake."""
        errors = kserve.errors
        if isinstance(error, errors.InvalidInput):
            return InvalidArgument(str(error))
        if isinstance(error, errors.ModelNotFound):
            return NotFound(str(error))
        if isinstance(error, errors.ModelNotReady | errors.ServerNotReady):
            return Unavailable(str(error))
        if isinstance(error, NotImplementedError | errors.UnsupportedProtocol):
            return Unsupported(str(error) or f"{step} is not implemented")
        if step != "preprocess":
            return None
        if isinstance(error, KeyError):
            return InvalidArgument(f"the body lacks the key {error}")
        if isinstance(error, binascii.Error):
            return InvalidArgument("the body holds text that is not valid base64")
        if isinstance(error, UnidentifiedImageError):  # its text names a memory address
            return InvalidArgument("the body holds something that is no picture")
        return None

    async def _call_predictor(self, payload: Any) -> Any:
        """What `kserve.Model.predict` does, through our client: the answer has the form of the question."""
        context = _context.get()
        if isinstance(payload, kserve.InferRequest):
            tensors = {tensor.name: tensor.as_numpy() for tensor in payload.inputs}
            return _infer_response(await self.predictor.call(self._request(tensors, payload), context))
        if isinstance(payload, Mapping) and "inputs" in payload:
            request = http_codec.decode_request(json_text.dumps(payload), model_name=self.config.predictor_model)
            answer = await self.predictor.call(request, context)
            return json_text.loads(http_codec.encode_response(answer, InferenceRequest("", ())).body())
        raise Internal("preprocess must return a dict with 'inputs' or an InferRequest for a V2 predictor")

    def _request(self, tensors: Mapping[str, Any], payload: Any) -> InferenceRequest:
        inputs = tuple(Tensor.of(tensor.name, tensors[tensor.name], tensor.datatype) for tensor in payload.inputs)
        return InferenceRequest(payload.model_name or self.config.predictor_model, inputs)


def _instantiate(stock_class: type[Any], config: TransformerConfig, call: Any) -> Any:
    """The class with its `super().predict` ours, built from whichever of KServe's arguments it takes.

    Raises:
        ConfigError: it needs an argument that we do not know.
    """

    class Caller(kserve.Model):  # type: ignore[misc, name-defined]
        async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            return await call(payload)

    served = type(stock_class.__name__, (stock_class, Caller), {})
    known = {
        "name": config.model_name,
        "model_name": config.model_name,
        "predictor_host": config.predictor.host,
        "protocol": config.predictor.protocol,
        "predictor_protocol": config.predictor.protocol,
        "predictor_use_ssl": config.predictor.use_ssl,
    }
    arguments = {}
    for name, parameter in inspect.signature(stock_class).parameters.items():
        if name in known:
            arguments[name] = known[name]
        elif parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise ConfigError(f"{stock_class.__name__}: its argument {name!r} is unknown; known are {', '.join(known)}")
    return served(**arguments)


def _infer_response(answer: InferenceResponse) -> Any:
    outputs = []
    for tensor in answer.outputs:
        output = kserve.InferOutput(tensor.name, list(tensor.shape), tensor.datatype)
        output.set_data_from_numpy(tensor.array, binary_data=False)
        outputs.append(output)
    return kserve.InferResponse(answer.id, answer.model_name, outputs, model_version=answer.model_version)
