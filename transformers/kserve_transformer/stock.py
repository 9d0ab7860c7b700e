"""Somebody's `kserve.Model` subclass on our server, unchanged.

Knows kserve, and is imported only for such a class.  Its hooks run off the event loop where they
are plain functions; its calls of the predictor go through our client.
"""

import inspect
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from kserve_transformer.config import ConfigError, TransformerConfig
from kserve_transformer.contract import Contract
from kserve_transformer.transformer import Transformer
from oip import http_codec, json_text
from oip.errors import Internal, InvalidArgument, NotFound, Unavailable, Unsupported
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
        self.model = _instantiate(stock_class, config, self._call_predictor)
        self.model.load()

    def check(self, contract: Contract) -> None:
        """Its tensors are its own affair."""

    async def predict(self, payload: Any, context: RequestContext) -> Any:
        """The stock class's three steps; a failure keeps its meaning instead of becoming a 500."""
        _context.set(context)
        model = self.model
        payload = await self._step(model.preprocess, payload, context)
        context.stopwatch.lap("preprocess")
        result = await self._step(model.predict, model.validate(payload), context)
        context.stopwatch.lap("predict")
        result = await self._step(model.postprocess, result, context)
        context.stopwatch.lap("postprocess")
        return result.to_dict()[0] if isinstance(result, kserve.InferResponse) else result

    async def _step(self, hook: Any, value: Any, context: RequestContext) -> Any:
        """A hook of the class; missing keys in the caller's JSON and kserve's own errors are the caller's mistakes."""
        try:
            return await self._hook(hook, value, context.headers)
        except Internal as failure:
            cause = failure.__cause__
            if isinstance(cause, kserve.errors.InvalidInput):
                raise InvalidArgument(str(cause)) from None
            if isinstance(cause, kserve.errors.ModelNotFound):
                raise NotFound(str(cause.reason)) from None
            if isinstance(cause, kserve.errors.ModelNotReady):
                raise Unavailable(str(cause.error_msg)) from None
            if isinstance(cause, NotImplementedError):
                raise Unsupported(str(cause) or f"{hook.__name__} is not implemented") from None
            if isinstance(cause, KeyError) and hook.__name__ == "preprocess":
                raise InvalidArgument(f"the body lacks the key {cause}") from None
            raise

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
