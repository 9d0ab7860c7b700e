"""Our transformer under the stock `kserve.ModelServer`.

Knows kserve, and is imported only by those who want its server:

    from kserve import ModelServer
    from kserve_transformer.bridge import kserve_model

    ModelServer().start([kserve_model(Transformer(load_config(Path("transformer.yaml"))))])
"""

import asyncio
import contextlib
import os
import uuid
from typing import Any

import kserve

from kserve_transformer.predictor import State
from kserve_transformer.transformer import Transformer
from oip.errors import InferenceError, InvalidArgument, NotFound, Unavailable
from oip.server.data_plane import RequestContext

_FIRST_CONTACT_SECONDS = 5.0
"""How long the first request waits for the predictor to be found."""


def kserve_model(transformer: Transformer) -> Any:
    """A `kserve.Model` that answers V1 requests with the transformer's whole flow."""
    return _Bridge(transformer)


class _Bridge(kserve.Model):  # type: ignore[misc]
    def __init__(self, transformer: Transformer) -> None:
        super().__init__(transformer.name)
        self.transformer = transformer
        self.ready = True  # ModelServer.start refuses to serve a model that does not say so
        self.engine = True  # that makes it await `start_engine`, inside the event loop
        self._started = False

    async def start_engine(self) -> None:
        self._start()

    def validate(self, payload: Any) -> Any:
        return payload  # the transformer's own checks say more

    async def healthy(self) -> bool:
        self._start()
        return self.transformer.predictor.state is State.READY

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        self._start()
        headers = {name.lower(): value for name, value in (headers or {}).items()}
        context = RequestContext(headers.get("x-request-id", "") or uuid.uuid4().hex, headers=headers)
        if self.transformer.predictor.state is State.WAITING:
            with contextlib.suppress(TimeoutError):  # then the transformer says what it is waiting for
                await asyncio.wait_for(self.transformer.predictor.decided(), _FIRST_CONTACT_SECONDS)
        try:
            return await self.transformer.predict(payload, context)
        except InvalidArgument as error:
            where = "" if error.instance is None else f" (instance {error.instance})"
            raise kserve.errors.InvalidInput(error.message + where) from None
        except NotFound:
            raise kserve.errors.ModelNotFound(self.name) from None
        except Unavailable as error:
            raise kserve.errors.ModelNotReady(self.name, error.message) from None
        except InferenceError as error:
            raise kserve.errors.InferenceError(error.message, str(error.code.http_status)) from None

    def stop(self) -> None:
        super().stop()
        if self._started:
            self._started = False
            self._stopping = asyncio.get_running_loop().create_task(self.transformer.stop())

    def _start(self) -> None:
        """In the server's own event loop, which exists only once it serves."""
        if not self._started:
            self._started = True
            self.transformer.start(len(os.sched_getaffinity(0)))
