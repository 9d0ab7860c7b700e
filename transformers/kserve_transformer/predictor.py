"""The transformer's side of the hop: find the predictor, agree on the contract, make the calls.

Knows `oip.client` and the contract; knows no picture and no V1.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, Literal, TypeVar

import numpy as np

from kserve_transformer.batches import Batch, Rows, merge, one_by_one, split
from kserve_transformer.config import PredictorSection
from kserve_transformer.contract import Contract, Mismatch, read_contract
from oip.client.address import Address
from oip.client.http import Answer, HttpClient, RetryPolicy
from oip.datatypes import DATATYPES
from oip.errors import BadAnswer, InferenceError, Internal, InvalidArgument, NotFound, Unavailable
from oip.messages import InferenceRequest, InferenceResponse
from oip.server.data_plane import RequestContext
from oip.tensors import Tensor

logger = logging.getLogger("tandem.predictor")

T = TypeVar("T")

FORWARDED = ("x-request-id", "authorization", "traceparent", "tracestate", "x-b3-traceid")
"""Headers of a client's request that go on to the predictor."""

BINARY_EXTENSION = "binary_tensor_data"
"""What a server lists that reads and writes tensors as raw bytes behind the JSON."""

_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.05, 2.0


class State(Enum):
    """`WAITING -> READY`, or `WAITING -> MISMATCH`, and from a mismatch back once the predictor changes."""

    WAITING = "waiting"
    READY = "ready"
    MISMATCH = "mismatch"


class Predictor:
    """One model behind one V2 server.

    `check` is called with every new contract and raises `Mismatch` where the transformer's own side
    does not fit it.
    """

    def __init__(self, section: PredictorSection, model: str, check: Callable[[Contract], None]) -> None:
        self.model = model
        self.state = State.WAITING
        self.reason = "the predictor has not been reached yet"
        self.hand_off: Literal["binary", "json"] = "json" if section.hand_off == "json" else "binary"
        self._section = section
        self._check = check
        self._contract: Contract | None = None
        self._client: HttpClient | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._decided = asyncio.Event()

    @property
    def address(self) -> Address:
        return Address.parse(self._section.host, tls=self._section.use_ssl)

    @property
    def contract(self) -> Contract:
        """What was agreed.

        Raises:
            Unavailable: nothing yet; the message says why.
        """
        if self._contract is None:
            raise Unavailable(f"the model is not ready: {self.reason}", retry_after_seconds=1)
        return self._contract

    def start(self) -> None:
        """Begin looking for the predictor; call inside the event loop."""
        section = self._section
        self._client = HttpClient(
            self.address,
            timeout_seconds=section.timeout_seconds,
            connections=section.connections,
            hand_off=self.hand_off,
            retries=RetryPolicy(attempts=section.retries + 1),
        )
        self._connecting = asyncio.ensure_future(self._connect())

    async def stop(self) -> None:
        if self._connecting:
            self._connecting.cancel()
        if self._client:
            await self._client.close()

    async def decided(self) -> State:
        """Return once the predictor has been reached: READY or MISMATCH."""
        await self._decided.wait()
        return self.state

    async def _connect(self) -> None:
        """Ask for the contract until there is one that fits.  Reasons are logged when they change."""
        wait = _FIRST_WAIT_SECONDS
        while self.state is not State.READY:
            state, reason = State.WAITING, ""
            try:
                await self._agree()
                return
            except Mismatch as mismatch:
                state, reason = State.MISMATCH, str(mismatch)
            except NotFound:
                state, reason = (
                    State.MISMATCH,
                    f"the transformer calls model '{self.model}', the predictor has none of that name",
                )
            except InferenceError as error:
                reason = f"{error.message} ({error.code.name})"
            except Exception:
                # Whatever a stranger's server sends, the search must go on: nobody would restart it.
                logger.exception("the predictor's metadata cannot be used")
                reason = "the predictor's metadata cannot be used"
            if reason != self.reason:  # waiting is how every start begins; a mismatch is somebody's mistake
                level = logging.WARNING if state is State.MISMATCH else logging.INFO
                logger.log(level, "not ready: %s (predictor %s)", reason, self.address)
            self.state, self.reason = state, reason
            if state is State.MISMATCH:
                self._decided.set()
            await asyncio.sleep(wait)
            wait = min(wait * 1.5, _LONGEST_WAIT_SECONDS)

    async def _agree(self) -> None:
        client, version = self._open_client(), self._section.version
        metadata = await client.model_metadata(self.model, version)
        config = await client.model_config(self.model, version)
        contract = read_contract(metadata, config, self._section)
        self._check(contract)
        if self._section.hand_off == "auto":
            binary = BINARY_EXTENSION in await client.extensions()
            self.hand_off = client.hand_off = "binary" if binary else "json"
        if not await client.model_ready(self.model, version):
            raise Unavailable("the predictor's model is not ready yet")
        self._contract, self.state, self.reason = contract, State.READY, ""
        self._decided.set()

    def _open_client(self) -> HttpClient:
        if self._client is None:
            raise Unavailable("the transformer is not started")
        return self._client

    # --- calls --------------------------------------------------------------------------------------------------------

    async def infer_rows(self, rows: Rows, context: RequestContext) -> list[dict[str, np.ndarray]]:
        """Send instances, split as the contract says, and return each one's outputs in order.

        The predictor's own account of its time is kept in the context, if a single call was made.

        Raises:
            InferenceError: a call failed; the others are then cancelled.
        """
        contract = self.contract
        if contract.batch_dimension:
            batches = split(rows, contract.max_rows)
        else:
            batches = one_by_one(rows, {tensor.name: len(tensor.shape) for tensor in contract.inputs})
        slots = asyncio.Semaphore(self._section.concurrency)
        answers = await _all([self._infer_batch(batch, contract, slots, context) for batch in batches])
        context.predictor_stages = answers[0].stages if len(answers) == 1 else {}
        return merge(batches, [_outputs(answer.response) for answer in answers])

    async def infer(self, tensors: Mapping[str, np.ndarray], context: RequestContext) -> dict[str, np.ndarray]:
        """One call with exactly these tensors (batch dimension included); outputs by name."""
        answer = await self._infer(_tensors(tensors, self.contract), context)
        context.predictor_stages = answer.stages
        return _outputs(answer.response)

    async def _infer_batch(
        self, batch: Batch, contract: Contract, slots: asyncio.Semaphore, context: RequestContext
    ) -> Answer:
        """A call that waits for one of its request's `slots`: a long request leaves connections to the others."""
        try:
            async with slots:
                return await self._infer(_tensors(batch.tensors, contract), context)
        except InferenceError as error:
            if error.instance is None and batch.count == 1 and isinstance(error, InvalidArgument):
                error.instance = batch.first
            raise

    async def _infer(self, inputs: tuple[Tensor, ...], context: RequestContext) -> Answer:
        request = InferenceRequest(self.model, inputs, model_version=self._section.version)
        return await self._send(request, context)

    async def call(self, request: InferenceRequest, context: RequestContext) -> InferenceResponse:
        """A request made elsewhere, as it is but for its id, its deadline and the form of its outputs."""
        answer = await self._send(request, context)
        context.predictor_stages = answer.stages
        return answer.response

    async def _send(self, request: InferenceRequest, context: RequestContext) -> Answer:
        parameters = dict(request.parameters)
        if context.deadline is not None:
            parameters["timeout"] = max(1, int((context.deadline - time.monotonic()) * 1e6))
        request = replace(
            request, id=context.request_id, binary_output=self.hand_off == "binary", parameters=parameters
        )
        headers = {name: context.headers[name] for name in FORWARDED if name in context.headers}
        headers["x-request-id"] = context.request_id
        return await self._open_client().infer(request, deadline=context.deadline, headers=headers)


async def _all(calls: Sequence[Awaitable[T]]) -> list[T]:
    """The results in order; the first failure cancels the rest and is raised."""
    if len(calls) == 1:
        return [await calls[0]]
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _outputs(response: InferenceResponse) -> dict[str, np.ndarray]:
    """The outputs by name, in numbers that numpy knows: BF16 becomes float32, which holds all of its values.

    Raises:
        BadAnswer: there is none.
    """
    if not response.outputs:
        raise BadAnswer("the predictor's answer holds no output")
    return {
        tensor.name: (tensor.array.astype(np.uint32) << 16).view(np.float32)
        if tensor.datatype == "BF16"
        else tensor.array
        for tensor in response.outputs
    }


def _tensors(arrays: Mapping[str, np.ndarray], contract: Contract) -> tuple[Tensor, ...]:
    """The arrays as the model's inputs, in the contract's order and datatypes.

    A hook's float64 becomes FP32 where the model wants that; a change of kind (floats to integers)
    is refused, since it would be a mistake.

    Raises:
        Internal: names or dtypes that the model does not take.
    """
    known = {tensor.name: tensor for tensor in contract.inputs}
    if arrays.keys() != known.keys():
        raise Internal(f"the transformer made tensors {', '.join(arrays)}; the model takes {', '.join(known)}")
    tensors = []
    for name, declared in known.items():
        array = arrays[name]
        dtype = DATATYPES[declared.datatype].dtype
        if declared.datatype == "BYTES" or array.dtype == dtype:
            tensors.append(Tensor.of(name, array, declared.datatype))
        elif np.can_cast(array.dtype, dtype, "same_kind"):
            tensors.append(Tensor.of(name, array.astype(dtype), declared.datatype))
        else:
            raise Internal(
                f"the transformer made {array.dtype} for input '{name}', the model takes {declared.datatype}"
            )
    return tuple(tensors)


def breakdown(stages: Mapping[str, tuple[float, str]], total_milliseconds: float) -> str:
    """How a `predict` stage splits into the predictor's own stages and the hop, for a person to read."""
    own = {name: milliseconds for name, (milliseconds, _) in stages.items() if name != "total"}
    if not own:
        return ""
    hop = max(0.0, total_milliseconds - sum(own.values()))
    return " + ".join(f"{name} {milliseconds:.2f}" for name, milliseconds in {"hop": hop, **own}.items())


def describe(predictor: Predictor) -> dict[str, Any]:
    """What the start-up table prints."""
    contract = predictor.contract.describe() if predictor.state is State.READY else predictor.reason
    return {"address": str(predictor.address), "state": predictor.state.value, "contract": contract}
