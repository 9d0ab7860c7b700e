"""A model's inputs and outputs found out: from the arguments of its `forward`, its weights and trial runs.

Pure decisions over a function that runs the model on zeros and tells datatypes and shapes; knows no torch.  The first
layer's weights say what a network takes (a convolution's channels, a linear layer's features); runs say which sizes are
fixed, and whether the first dimension is the batch's.  What it cannot find it says, for a person to write down.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torchscript_predictor.config_rules import VARIABLE
from torchscript_predictor.model_config import Description, ModelInput, ModelOutput
from torchscript_predictor.signature import Argument, ArgumentKind

MAX_BATCH_SIZE = 8
"""What a model that batches gets where nothing says more; `tandem export` writes the same."""

BUDGET_SECONDS = 10.0
"""After that no further guess is made."""

SIDES = (224, 32, 28, 64, 96, 128, 256, 299, 384, 512, 16, 8)
LENGTHS = (128, 16, 1024, 16000)
WEIGHTS_LOOKED_AT = 4

_FIXED = {
    ArgumentKind.STRINGS: ("TYPE_STRING", (1,)),
    ArgumentKind.STRING: ("TYPE_STRING", (1,)),
    ArgumentKind.INT: ("TYPE_INT64", (1,)),
    ArgumentKind.FLOAT: ("TYPE_FP32", (1,)),
    ArgumentKind.BOOL: ("TYPE_BOOL", (1,)),
}


class DerivationError(ValueError):
    """Nothing could be found out; the message says why and what to write."""


class TrialError(Exception):
    """The model does not take these inputs."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One input of a run: zeros of a datatype and shape."""

    data_type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """One result of a run.  `name` is its key or field, "" if it has none."""

    name: str
    data_type: str
    shape: tuple[int, ...]


Run = Callable[[Sequence[Trial]], Sequence[Result]]


def derive(
    arguments: Sequence[Argument],
    weights: Sequence[Trial],
    run: Run,
    *,
    max_batch_size: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Description:
    """The description of a model.

    Args:
        arguments: of its `forward`; those that a call may leave out are left out.
        weights: datatypes and shapes of its parameters, in order.
        run: runs it on one trial for each argument that is not left out; raises TrialError.
        max_batch_size: what the configuration says; 0: whatever the model can do.

    Raises:
        DerivationError: no trial succeeds, or the configuration asks for batches and the model has none.
    """
    needed = [argument for argument in arguments if not argument.omissible]
    for argument in needed:
        if argument.kind in (None, ArgumentKind.DICT):
            raise DerivationError(
                f"argument '{argument.name}' of forward is a {argument.type}, whose contents only its code knows; "
                "write config.pbtxt with input and output"
            )
    if not needed:
        raise DerivationError("forward needs no input; write config.pbtxt with those that requests shall give")
    return _Derivation(needed, run, clock, clock() + BUDGET_SECONDS).describe(weights, max_batch_size)


class _Derivation:
    """The state of one derivation: what is left of its time."""

    def __init__(self, needed: Sequence[Argument], run: Run, clock: Callable[[], float], deadline: float) -> None:
        self._needed = needed
        self._run_model = run
        self._clock = clock
        self._deadline = deadline
        self._tensors = [argument.kind is ArgumentKind.TENSOR for argument in needed]

    def describe(self, weights: Sequence[Trial], max_batch_size: int) -> Description:
        if not any(self._tensors):
            found = self._try("TYPE_FP32", ())
            return self._described("TYPE_FP32", (), found, [found], max_batch_size=0)
        data_type, shape, found = self._first(weights)
        batched = all(self._tensors) and self._batches(data_type, shape, found)
        if max_batch_size and not batched:
            raise DerivationError(
                f"max_batch_size is {max_batch_size}, but the results for {list(shape)} have no row for each row of "
                "the input; set max_batch_size: 0 or write input and output"
            )
        wanted, seen = list(shape), [found]
        for axis in range(1 if batched else 0, len(shape)):
            varied = [self._varied(data_type, shape, axis, size) for size in _other_sizes(shape[axis])]
            complete = [results for results in varied if results is not None and len(results) == len(found)]
            if len(complete) == len(varied):
                wanted[axis] = VARIABLE
                seen += complete
        return self._described(
            data_type, tuple(wanted), found, seen, max_batch_size=(max_batch_size or MAX_BATCH_SIZE) if batched else 0
        )

    def _first(self, weights: Sequence[Trial]) -> tuple[str, tuple[int, ...], Sequence[Result]]:
        """The first guess that the model takes: datatype, whole shape, results."""
        reason = "there was nothing to try"
        for guess in _guesses(weights):
            for shape in ((1, *guess.shape), guess.shape):
                try:
                    return guess.data_type, shape, self._try(guess.data_type, shape)
                except TrialError as error:
                    reason = str(error)
            if self._clock() > self._deadline:
                break
        names = ", ".join(f"{argument.name}: {argument.type}" for argument in self._needed)
        raise DerivationError(
            f"forward takes ({names}), and none of the usual shapes of zeros was accepted (at last: {reason}); write "
            "config.pbtxt with input and output, or a schema.json"
        )

    def _batches(self, data_type: str, shape: tuple[int, ...], found: Sequence[Result]) -> bool:
        for rows in (1, 2, 3):
            results = found if rows == shape[0] else self._varied(data_type, shape, 0, rows)
            if results is None or len(results) != len(found):
                return False
            if any(not r.shape or r.shape[0] != rows or r.data_type == "TYPE_STRING" for r in results):
                return False
        return len(shape) > 1

    def _varied(self, data_type: str, shape: tuple[int, ...], axis: int, size: int) -> Sequence[Result] | None:
        """The results for another size of one axis; None if the model does not take it, or there is no time."""
        if self._clock() > self._deadline:
            return None
        try:
            return self._try(data_type, (*shape[:axis], size, *shape[axis + 1 :]))
        except TrialError:
            return None

    def _try(self, data_type: str, shape: tuple[int, ...]) -> Sequence[Result]:
        return self._run_model([self._trial(argument, data_type, shape) for argument in self._needed])

    @staticmethod
    def _trial(argument: Argument, data_type: str, shape: tuple[int, ...]) -> Trial:
        assert argument.kind is not None
        return Trial(*_FIXED.get(argument.kind, (data_type, shape)))

    def _described(
        self,
        data_type: str,
        shape: tuple[int, ...],
        found: Sequence[Result],
        seen: Sequence[Sequence[Result]],
        *,
        max_batch_size: int,
    ) -> Description:
        inputs = []
        for argument in self._needed:
            trial = self._trial(argument, data_type, shape)
            dims = trial.shape[1:] if max_batch_size else trial.shape
            if argument.kind is ArgumentKind.STRINGS:
                dims = (VARIABLE,)
            inputs.append(ModelInput(argument.name, trial.data_type, dims))
        names = [result.name for result in found]
        if "" in names or len(set(names)) < len(names):
            names = [f"OUTPUT__{index}" for index in range(len(found))]
        outputs = tuple(
            _output(name, [results[index] for results in seen], batched=max_batch_size > 0)
            for index, name in enumerate(names)
        )
        return Description(max_batch_size, tuple(inputs), outputs)


def _output(name: str, seen: Sequence[Result], *, batched: bool) -> ModelOutput:
    first = seen[0]
    if any(len(result.shape) != len(first.shape) for result in seen):
        raise DerivationError(f"the rank of result '{name}' depends on the input; write config.pbtxt")
    sizes = [{result.shape[axis] for result in seen} for axis in range(len(first.shape))]
    dims = tuple(next(iter(size)) if len(size) == 1 and 0 not in size else VARIABLE for size in sizes)
    if first.data_type == "TYPE_STRING":
        return ModelOutput(name, first.data_type, (VARIABLE,))
    if batched and len(dims) == 1:
        return ModelOutput(name, first.data_type, (1,), ())  # one number a row: the wire has [N, 1], the model [N]
    return ModelOutput(name, first.data_type, (dims[1:] if batched else dims) or (1,))


def _other_sizes(size: int) -> tuple[int, int]:
    """Two that differ enough for a pooling layer's rounding not to hide that the size is fixed."""
    return size + 1, size + max(2, size // 4)


def _guesses(weights: Sequence[Trial]) -> Iterator[Trial]:
    """Datatypes and shapes, without a batch dimension, that a network with these weights may take."""
    layers = [weight for weight in weights if len(weight.shape) >= 2][:WEIGHTS_LOOKED_AT]
    for layer in layers:
        width = layer.shape[1]
        match len(layer.shape):
            case 2:  # linear [out, in]; or an embedding [words, width], which takes their numbers
                yield Trial(layer.data_type, (width,))
                yield Trial("TYPE_INT64", (16,))
                yield Trial(layer.data_type, (16, width))
            case 3:
                for length in LENGTHS:
                    yield Trial(layer.data_type, (width, length))
            case 4:
                for side in SIDES:
                    yield Trial(layer.data_type, (width, side, side))
            case 5:
                for side in (112, 32, 16):
                    yield Trial(layer.data_type, (width, 16, side, side))
    floating = next(
        (w.data_type for w in weights if w.data_type in ("TYPE_FP16", "TYPE_BF16", "TYPE_FP64")), "TYPE_FP32"
    )
    yield Trial(floating, (4,))
    yield Trial(floating, (3, 224, 224))
    yield Trial("TYPE_INT64", (16,))
    yield Trial(floating, (4, 4))
