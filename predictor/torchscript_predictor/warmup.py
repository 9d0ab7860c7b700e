"""What a model executes before it is ready: the configured samples, or zeros where there are none.

Every instance warms up on its own thread.  A configured sample that fails fails the load, because
somebody asked for it; automatic warm-up is a guess, so an error there is logged and skipped.
"""

import logging
import time
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import numpy as np

from oip.datatypes import BY_CONFIG_NAME
from oip.errors import InferenceError, InvalidArgument
from oip.tensors import bytes_array
from torchscript_predictor.backends import LoadedModel, LoadError
from torchscript_predictor.config_rules import VARIABLE
from torchscript_predictor.model_config import ModelConfig, WarmupInput, WarmupSample
from torchscript_predictor.repository import RepositoryError
from torchscript_predictor.threads import several_pay

logger = logging.getLogger(__name__)

AUTOMATIC_RUNS = 3
"""torch's profiling executor watches two calls and optimises in the third."""

MAX_AUTOMATIC_RUNS = 10
"""At one batch size; a machine that is busy otherwise never settles."""

SETTLED = 0.2
"""Two runs that differ by less than this part of the slower are alike."""

PICTURE_SIDE = 224
"""The second guess for variable dimensions; the first is 1, which convolutions refuse."""

MAX_AUTOMATIC_ELEMENTS = 1 << 22
"""Elements of one automatic input; a larger guess is not worth the time."""

MAX_AUTOMATIC_SECONDS = 5.0
"""Time that the runs at one batch size may be expected to take; more is skipped."""

MAX_TRIAL_SECONDS = 0.5
"""Time that finding out how many threads pay may take for each number of them."""

Arrays = dict[str, np.ndarray]


Clock = Callable[[], float]


def warm_up(
    model: LoadedModel, config: ModelConfig, warmup_file: Callable[[str], Path], clock: Clock = time.perf_counter
) -> None:
    """Warm up one instance on the calling thread.

    Args:
        warmup_file: gives the path of a file under the model's folder `warmup`, or raises RepositoryError.

    Raises:
        LoadError: a configured sample cannot be read, or fails.
    """
    if not config.warmup:
        _automatic(model, config, clock)
    for sample in config.warmup:
        try:
            inputs = sample_inputs(sample, config, warmup_file)
            for _ in range(sample.count):
                model.execute(inputs)
        except (InferenceError, RepositoryError, ValueError, MemoryError) as error:
            reason = str(error) or type(error).__name__
            raise LoadError(f"failed to run warmup sample '{sample.name}': {reason}") from error


def _automatic(model: LoadedModel, config: ModelConfig, clock: Clock) -> None:
    failure: InferenceError | None = None
    for side in (1, PICTURE_SIDE):
        inputs = zero_inputs(config, batch_size=1, variable=side)
        if inputs is None:
            break
        try:
            seconds = _settle(model, inputs, clock)
        except InvalidArgument as error:  # the model ran and its answer does not fit the configuration
            logger.warning("model %s: every request will fail: %s", config.name, error)
            return
        except InferenceError as error:
            failure = error
            continue
        for size in automatic_batch_sizes(config)[1:]:
            larger = zero_inputs(config, batch_size=size, variable=side)
            if larger is None or seconds * size * AUTOMATIC_RUNS > MAX_AUTOMATIC_SECONDS:
                logger.info(
                    "model %s: automatic warm-up skips batch size %d, it would take too long", config.name, size
                )
                return
            try:
                _settle(model, larger, clock)
            except InferenceError as error:
                what = "max_batch_size" if size == config.max_batch_size else "preferred_batch_size"
                logger.warning("model %s fails at %s %d: %s", config.name, what, size, error)
        return
    logger.info(
        "model %s: automatic warm-up with zeros is skipped (%s); the first requests may be slow, model_warmup in "
        "config.pbtxt would help",
        config.name,
        failure or "inputs too large",
    )


def automatic_batch_sizes(config: ModelConfig) -> list[int]:
    """1, the preferred batch sizes and the largest, each once, ascending."""
    preferred = config.dynamic_batching.preferred_batch_size if config.dynamic_batching else ()
    return sorted({1, *preferred, max(1, config.max_batch_size)})


def settled(seconds: Sequence[float]) -> bool:
    """Whether the last of several runs is as fast as the one before, so that another would teach nothing."""
    if len(seconds) < AUTOMATIC_RUNS:
        return False
    before, last = seconds[-2:]
    return len(seconds) >= MAX_AUTOMATIC_RUNS or abs(last - before) <= SETTLED * max(last, before)


def _settle(model: LoadedModel, inputs: Arrays, clock: Clock) -> float:
    """Execute until timings settle; the seconds of the fastest run."""
    seconds: list[float] = []
    while not settled(seconds):
        started = clock()
        model.execute(inputs)
        seconds.append(clock() - started)
    return min(seconds)


def threads_that_pay(model: LoadedModel, config: ModelConfig, threads: int, clock: Clock = time.perf_counter) -> int:
    """`threads`, or 1 where that many are hardly faster; tried with zeros on the calling thread.

    A model that cannot be tried, or takes long, keeps what it was given.
    """
    inputs = next((made for side in (1, PICTURE_SIDE) if _runs(model, made := zero_inputs(config, 1, side))), None)
    if inputs is None:
        return threads
    fastest = {}
    for count in (threads, 1):
        model.enter_thread(count)
        if _run(model, inputs, clock) > MAX_TRIAL_SECONDS:
            return threads
        fastest[count] = min(_run(model, inputs, clock) for _ in range(AUTOMATIC_RUNS))
    return threads if several_pay(fastest[1], fastest[threads]) else 1


def _runs(model: LoadedModel, inputs: Arrays | None) -> bool:
    if inputs is None:
        return False
    try:
        model.execute(inputs)
    except InferenceError:
        return False
    return True


def _run(model: LoadedModel, inputs: Arrays, clock: Clock) -> float:
    """Execute a few times; returns the seconds that they took together."""
    started = clock()
    for _ in range(AUTOMATIC_RUNS):
        model.execute(inputs)
    return clock() - started


def zero_inputs(config: ModelConfig, batch_size: int, variable: int) -> Arrays | None:
    """Inputs of zeros and empty strings, variable dimensions given a size; None if too large."""
    batch = (batch_size,) if config.max_batch_size > 0 else ()
    arrays = {}
    for tensor in config.inputs:
        shape = (*batch, *(variable if dim == VARIABLE else dim for dim in tensor.dims))
        if prod(shape) > MAX_AUTOMATIC_ELEMENTS:
            return None
        arrays[tensor.name] = _zeros(tensor.data_type, shape)
    return arrays


def sample_inputs(sample: WarmupSample, config: ModelConfig, warmup_file: Callable[[str], Path]) -> Arrays:
    """The inputs of a configured sample, each repeated `batch_size` times where the model batches.

    Raises:
        RepositoryError: a file is not there.
        ValueError: a file does not hold what its dims and data_type need.
    """
    arrays = {}
    for entry in sample.inputs:
        array = _sample(entry, warmup_file)
        if config.max_batch_size > 0:
            array = np.repeat(array[np.newaxis], sample.batch_size, axis=0)
        arrays[entry.name] = array
    return arrays


def _sample(entry: WarmupInput, warmup_file: Callable[[str], Path]) -> np.ndarray:
    if entry.source == "zero_data":
        return _zeros(entry.data_type, entry.dims)
    if entry.source == "random_data":
        return _random(entry.data_type, entry.dims)
    return _from_bytes(entry, warmup_file(entry.file).read_bytes())


def _zeros(data_type: str, shape: tuple[int, ...]) -> np.ndarray:
    if data_type == "TYPE_STRING":
        return bytes_array([b""] * prod(shape), shape)
    return np.zeros(shape, BY_CONFIG_NAME[data_type].dtype)


def _random(data_type: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers from 0 to 1 (floats) or 0 to 127 (whole), the same in every run."""
    random = np.random.default_rng(0)
    if data_type == "TYPE_STRING":
        return bytes_array([str(number) for number in random.integers(0, 128, prod(shape))], shape)
    if data_type == "TYPE_BF16":
        # the upper half of a float32 is the bfloat16 of the same number, but for rounding
        return (random.random(shape, np.float32).view(np.uint32) >> 16).astype("<u2")
    dtype = BY_CONFIG_NAME[data_type].dtype
    if dtype.kind == "f":
        return random.random(shape).astype(dtype)
    return random.integers(0, 2 if dtype.kind == "b" else 128, shape).astype(dtype)


def _from_bytes(entry: WarmupInput, content: bytes) -> np.ndarray:
    """The elements as on the wire: little-endian, strings after a uint32 length each."""
    count = prod(entry.dims)
    dtype = BY_CONFIG_NAME[entry.data_type].dtype
    if entry.data_type == "TYPE_STRING":
        return bytes_array(_split_strings(entry, content, count), entry.dims)
    if len(content) != count * dtype.itemsize:
        raise ValueError(
            f"file {entry.file} holds {len(content)} bytes; input '{entry.name}' with dims {list(entry.dims)} needs "
            f"{count * dtype.itemsize}"
        )
    return np.frombuffer(content, dtype).reshape(entry.dims)


def _split_strings(entry: WarmupInput, content: bytes, count: int) -> list[bytes]:
    strings = []
    position = 0
    while position < len(content):
        length = int.from_bytes(content[position : position + 4], "little")
        strings.append(content[position + 4 : position + 4 + length])
        position += 4 + length
    if position != len(content) or len(strings) != count:
        raise ValueError(
            f"file {entry.file} does not hold exactly {count} strings, each after its length as a little-endian uint32"
        )
    return strings
