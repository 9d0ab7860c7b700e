"""The class that authors extend, and the way of a request through it.

Knows arrays, hooks and the predictor; knows no HTTP.  Nothing needs to be overridden for a usual
picture model: the configuration says it all.  What may be:

- `preprocess_instance` and `postprocess_instance`, for one instance, plain functions on the decode pool;
- `preprocess` and `postprocess`, for a whole request as in KServe, plain (on the pool) or async.

The framework checks, stacks, splits, calls, merges and times.
"""

import asyncio
import contextvars
import inspect
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pybase64

from kserve_transformer import fields, tasks
from kserve_transformer.config import ConfigError, TransformerConfig
from kserve_transformer.contract import Contract, check_classes, check_output, check_pictures
from kserve_transformer.pictures import PNG_HEAD, PictureReader, png_pixels
from kserve_transformer.predictor import Predictor, breakdown
from oip.errors import BadAnswer, DeadlineExceeded, InferenceError, Internal, InvalidArgument
from oip.server.data_plane import RequestContext

logger = logging.getLogger("tandem.transformer")

THUMBNAIL_CHARACTERS = 8192
"""Base64 text of a picture that is read on the event loop: 6 KB, some tens of microseconds.  Deflate makes at most
a thousand times that of it, which Pillow discards in a few milliseconds: the worst that a hostile one can cost."""

THUMBNAIL_PIXELS = 64 * 64

T = TypeVar("T")
Row = Mapping[str, np.ndarray]


class Transformer:
    """Pictures (or whatever `preprocess_instance` reads) to tensors, outputs to answers."""

    def __init__(self, config: TransformerConfig) -> None:
        if isinstance(config.output.labels, Path):
            raise ConfigError(f"output.labels: {config.output.labels} was not read; use load_config, or give a list")
        self.config = config
        self.name = config.model_name
        self.pictures = PictureReader(config.image)
        self._pool: ThreadPoolExecutor | None = None
        self._threads = 0
        self._takes_headers: dict[str, bool] = {}
        self._predictor: Predictor | None = None
        self._own_preprocess = _overrides(self, "preprocess_instance")
        self._own_postprocess = _overrides(self, "postprocess_instance")

    # --- hooks of authors ---------------------------------------------------------------------------------------------

    def preprocess_instance(self, instance: Any) -> np.ndarray | Mapping[str, np.ndarray]:
        """One instance's tensors, without a batch dimension: one array, or {input name: array}.

        This default reads the instance's picture as the configuration says: float32 [C, H, W].
        Raise `InvalidArgument` for an instance that is the caller's mistake.
        """
        return self._read_picture(instance, None)

    def postprocess_instance(self, outputs: Mapping[str, np.ndarray], instance: Any) -> Any:
        """The answer for one instance, anything that JSON can carry.

        `outputs` are the model's, without a batch dimension; `instance` is what the client sent, so that
        fields beside the picture can shape the answer.  This default does the configured task.
        """
        output = self.config.output
        chosen = self._chosen(outputs)
        if output.task == "classification":
            scores = next(iter(chosen.values()))
            return tasks.classification(scores, activation=output.activation, top_k=output.top_k, labels=self._labels)
        return tasks.raw(chosen)

    # `preprocess(payload, headers)` and `postprocess(result, headers)` are looked up by name: a class that does not
    # define them has no such step.  `preprocess` returns either a payload with "instances", which then go on as
    # usual, or {input name: array [N, ...]}, which is sent as it is; `postprocess` then gets the outputs so.

    # --- life ---------------------------------------------------------------------------------------------------------

    @property
    def predictor(self) -> Predictor:
        """The model behind this transformer; for hooks that call it themselves."""
        if self._predictor is None:
            self._predictor = Predictor(self.config.predictor, self.config.predictor_model, self.check)
        return self._predictor

    def start(self, threads: int) -> None:
        """Open the decode pool and begin looking for the predictor; call inside the event loop."""
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self.predictor.start()

    async def stop(self) -> None:
        """Close what `start` opened."""
        await self.predictor.stop()
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def check(self, contract: Contract) -> None:
        """Whether this transformer fits the model; hooks of one's own are taken at their word.

        Raises:
            Mismatch: it does not.
        """
        if not self._own_preprocess and not hasattr(self, "preprocess"):
            check_pictures(contract, self.pictures.shape, self.config.image.channels)
        output = self.config.output
        if self._own_postprocess:
            return
        if output.task == "classification":
            check_classes(contract, output.output, None if self._labels is None else len(self._labels))
        else:
            check_output(contract, output.output)

    # --- the way of a request -----------------------------------------------------------------------------------------

    async def predict(self, payload: Any, context: RequestContext) -> Any:
        """A V1 payload to a V1 answer.

        Raises:
            InferenceError: with the index of the instance at fault, where one is.
        """
        require_time(context)
        if hasattr(self, "preprocess"):
            payload = await self._hook("preprocess", self.preprocess, payload, context)
        if _is_tensors(payload):
            context.stopwatch.lap("preprocess")
            result: Any = await self.predictor.infer(payload, context)
            _lap_predict(context)
        else:
            result = await self._predict_instances(self._instances(payload), context)
        if hasattr(self, "postprocess"):
            result = await self._hook("postprocess", self.postprocess, result, context)
        context.stopwatch.lap("postprocess")
        return result

    async def _predict_instances(self, instances: Sequence[Any], context: RequestContext) -> Any:
        contract = self.predictor.contract  # before any decoding: a transformer that is not ready says so at once
        rows = await self._rows(instances, contract, context)
        context.stopwatch.lap("preprocess")
        outputs = await self.predictor.infer_rows(rows, context)
        _lap_predict(context)
        if self.config.output.response == "outputs" and not self._own_postprocess:
            return self._stacked(outputs)
        return {"predictions": await self._answers(outputs, instances, context)}

    def _instances(self, payload: Any) -> Sequence[Any]:
        if not isinstance(payload, Mapping):
            raise InvalidArgument(f'the body must be a JSON object {{"instances": [...]}}, got {fields.kind(payload)}')
        if "instances" not in payload:
            keys = ", ".join(repr(str(key)[:40]) for key in list(payload)[:8]) or "no keys"
            raise InvalidArgument(f"'instances' is missing; send {{\"instances\": [...]}}, got an object with {keys}")
        instances = payload["instances"]
        if not isinstance(instances, list):
            raise InvalidArgument(f"'instances' must be a list, got {fields.kind(instances)}")
        if not instances:
            raise InvalidArgument("'instances' is empty; it must hold at least one instance")
        if len(instances) > self.config.max_instances:
            raise InvalidArgument(
                f"'instances' holds {len(instances)}, "
                f"more than the limit of {self.config.max_instances}; send several requests"
            )
        return instances

    async def _rows(self, instances: Sequence[Any], contract: Contract, context: RequestContext) -> list[Row]:
        """Every instance's tensors, made on the decode pool by as many threads as there are instances."""
        name = contract.main_input.name
        shape = self.pictures.shape
        if self._own_preprocess or shape is None:

            def row(index: int) -> Row:
                made = self.preprocess_instance(instances[index])
                if isinstance(made, Mapping):
                    return {key: np.asarray(value) for key, value in made.items()}
                return {name: np.asarray(made)}

        else:
            # The usual case: every picture is written straight into its row of the tensor that will be sent.
            buffer = np.empty((len(instances), *shape), dtype=np.float32)

            def row(index: int) -> Row:
                self._read_picture(instances[index], buffer[index])
                return {name: buffer[index]}

        if not self._own_preprocess and len(instances) == 1 and self._is_thumbnail(instances[0]):
            require_time(context)
            return [_one("preprocess_instance", row, 0)]
        return await self._each(len(instances), "preprocess_instance", row, context)

    def _is_thumbnail(self, instance: Any) -> bool:
        """Whether the picture is so small that handing it to a thread would cost more than reading it.

        A digit or a CIFAR-10 picture takes 60 microseconds, two thread switches under load take several times that.
        What a picture may cost is bounded by its text and by the size in its header, read here without decoding it.
        """
        section, shape = self.config.image, self.pictures.shape
        if section.resize and (shape is None or shape[1] * shape[2] > THUMBNAIL_PIXELS):
            return False
        try:
            _, text = fields.find(instance, section.field)
            if not isinstance(text, str) or len(text) > THUMBNAIL_CHARACTERS:
                return False
            pixels = png_pixels(pybase64.b64decode(text[: PNG_HEAD * 4 // 3]))
        except (InvalidArgument, ValueError):
            return False  # the thread will say what is wrong
        return pixels is not None and pixels <= THUMBNAIL_PIXELS

    async def _answers(self, outputs: Sequence[Row], instances: Sequence[Any], context: RequestContext) -> list[Any]:
        def answer(index: int) -> Any:
            return self.postprocess_instance(outputs[index], instances[index])

        if self._own_postprocess:
            return await self._each(len(outputs), "postprocess_instance", answer, context)
        # Microseconds each: not worth a thread.
        return [_one("postprocess_instance", answer, index) for index in range(len(outputs))]

    def _read_picture(self, instance: Any, out: np.ndarray | None) -> np.ndarray:
        section = self.config.image
        field, value = fields.find(instance, section.field)
        return self.pictures.read(fields.decode_base64(value, field, section.limits.bytes), out)

    def _chosen(self, outputs: Row) -> Row:
        """The outputs that the answer is made of, all finite: the configured one, or all.

        Raises:
            BadAnswer: the predictor did not give the configured one.
            Internal: one holds NaN or infinity.
        """
        name = self.config.output.output
        if name is not None:
            if name not in outputs:
                raise BadAnswer(f"the predictor gave no output '{name}', only {', '.join(outputs)}")
            outputs = {name: outputs[name]}
        for key, array in outputs.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise Internal(
                    f"the model's output '{key}' holds NaN or infinity, which an answer in JSON cannot carry"
                )
        return outputs

    def _stacked(self, outputs: Sequence[Row]) -> dict[str, Any]:
        """KServe's tutorial form: {output name: its rows}."""
        chosen = [self._chosen(row) for row in outputs]
        if any(row.keys() != chosen[0].keys() for row in chosen):
            raise BadAnswer("the predictor gave different outputs for the instances of one request")
        return {name: [tasks.raw({name: row[name]}) for row in chosen] for name in chosen[0]}

    @property
    def _labels(self) -> Sequence[str] | None:
        labels = self.config.output.labels
        return labels if isinstance(labels, tuple) else None

    # --- hooks off the event loop -------------------------------------------------------------------------------------

    async def _each(self, count: int, hook: str, work: Callable[[int], T], context: RequestContext) -> list[T]:
        """`work(0) ... work(count - 1)` on the pool, results in order; the lowest failing index is reported.

        A share of the indices goes to each thread, so that a request of many instances costs as
        many thread switches as there are threads.  Work that nobody needs any more is left out: behind
        an instance that failed, after the deadline, once the caller has gone.
        """
        needed = count

        def share(indices: range) -> list[T]:
            nonlocal needed
            made = []
            for index in indices:
                if index >= needed:
                    break
                try:
                    require_time(context)
                    made.append(_one(hook, work, index))
                except InferenceError:
                    needed = min(needed, index)
                    raise
            return made

        if self._pool is None:
            raise Internal("the transformer is not started; this is a bug")
        shares = min(count, self._threads)
        bounds = [count * number // shares for number in range(shares + 1)]
        loop = asyncio.get_running_loop()
        try:
            parts = await asyncio.gather(
                *(
                    loop.run_in_executor(self._pool, share, range(first, end))
                    for first, end in itertools.pairwise(bounds)
                ),
                return_exceptions=True,
            )
        except asyncio.CancelledError:
            needed = 0
            raise
        results: list[T] = []
        for part in parts:
            if isinstance(part, BaseException):
                raise part
            results += part
        return results

    async def _hook(self, step: str, hook: Callable[..., Any], value: Any, context: RequestContext) -> Any:
        """A whole-request hook: awaited where it is async, on the pool where it is not."""
        takes_headers = self._takes_headers.get(step)
        if takes_headers is None:
            takes_headers = self._takes_headers[step] = _accepts_two(hook)
        arguments = (value, context.headers) if takes_headers else (value,)
        try:
            if inspect.iscoroutinefunction(hook):
                return await hook(*arguments)
            run = contextvars.copy_context().run
            result = await asyncio.get_running_loop().run_in_executor(self._pool, run, _call, hook, *arguments)
            return await result if inspect.isawaitable(result) else result
        except InferenceError:
            raise
        except Exception as error:
            meaning = self._meaning(step, error)
            if meaning is not None:
                raise meaning from None
            logger.exception("%s failed", step)
            raise Internal(f"{step} failed: {type(error).__name__}") from error

    def _meaning(self, step: str, error: Exception) -> InferenceError | None:
        """What an exception of a whole-request hook tells the caller; None for a bug in the hook."""
        return None


def _one(hook: str, work: Callable[[int], T], index: int) -> T:
    """`work(index)`, its failures as errors that say which instance they are about."""
    try:
        return work(index)
    except InferenceError as error:
        error.instance = index if error.instance is None else error.instance
        raise
    except Exception as error:
        logger.exception("%s failed on instance %d", hook, index)
        raise Internal(f"{hook} failed: {type(error).__name__}", instance=index) from error


def _call(hook: Callable[..., Any], *arguments: Any) -> Any:
    """`hook(*arguments)`, but a StopIteration that escapes it cannot leave the future waiting for ever."""
    try:
        return hook(*arguments)
    except StopIteration as error:
        raise RuntimeError("the hook raised StopIteration") from error


def _accepts_two(hook: Callable[..., Any]) -> bool:
    """Whether a hook takes the headers beside the payload: older ones of KServe's do not."""
    try:
        inspect.signature(hook).bind(None, None)
    except (TypeError, ValueError):
        return False
    return True


def require_time(context: RequestContext) -> None:
    """Nothing is begun for a caller who no longer waits.

    Raises:
        DeadlineExceeded: its deadline has passed.
    """
    if context.deadline is not None and time.monotonic() >= context.deadline:
        raise DeadlineExceeded("the deadline passed before the request was worked on")


def _lap_predict(context: RequestContext) -> None:
    seconds = context.stopwatch.lap("predict")
    context.stopwatch.describe(breakdown(context.predictor_stages, seconds * 1000))


def _overrides(transformer: Transformer, hook: str) -> bool:
    return getattr(type(transformer), hook) is not getattr(Transformer, hook)


def _is_tensors(payload: Any) -> bool:
    return (
        isinstance(payload, Mapping)
        and bool(payload)
        and all(isinstance(value, np.ndarray) for value in payload.values())
    )
