"""What the predictor's model takes and gives, and whether this transformer's tensors fit it.

Pure: metadata and configuration in, a `Contract` or a `Mismatch` out.  Knows no network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kserve_transformer.config import PredictorSection
from oip.messages import ModelMetadata, TensorMetadata


class Mismatch(Exception):
    """The two sides do not fit; the message names both."""


@dataclass(frozen=True, slots=True)
class Contract:
    """How to call the model.

    `max_rows` is how many instances a call may hold (None: any number).  Without a
    `batch_dimension` a call holds one instance and its tensors have the declared rank.
    """

    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    max_rows: int | None
    batch_dimension: bool
    main_input: TensorMetadata

    def element_shape(self, tensor: TensorMetadata) -> tuple[int, ...]:
        """A tensor's declared shape for one instance."""
        return tensor.shape[1:] if self.batch_dimension else tensor.shape

    def describe(self) -> str:
        """One line for people."""
        sides = [
            ", ".join(f"{tensor.name} {tensor.datatype} {list(tensor.shape)}" for tensor in tensors)
            for tensors in (self.inputs, self.outputs)
        ]
        rows = "any number of" if self.max_rows is None else str(self.max_rows)
        return f"{sides[0]} -> {sides[1]}, {rows} instance{'' if self.max_rows == 1 else 's'} a call"


def read_contract(metadata: ModelMetadata, config: Mapping[str, Any] | None, section: PredictorSection) -> Contract:
    """The contract out of what the predictor says and what the transformer's own settings add.

    `config` is the JSON model configuration, or None where the server has no such route: then a
    leading -1 is taken for the batch dimension, and a call holds one instance unless
    `predictor.max_batch_size` says more (0: any number).

    With `max_batch_size` 0 the model does not batch by itself: a leading -1 takes all instances, anything
    else one instance a call in the declared shape.

    Raises:
        Mismatch: the model has no inputs, or not the one that is configured, or takes fewer instances a call.
    """
    if not metadata.inputs:
        raise Mismatch(f"the predictor says that model '{metadata.name}' has no inputs; its metadata must name them")
    wanted = section.input
    main = next((tensor for tensor in metadata.inputs if wanted in (None, tensor.name)), None)
    if main is None:
        names = ", ".join(tensor.name for tensor in metadata.inputs)
        raise Mismatch(f"the transformer's predictor.input is '{wanted}', the predictor's model has {names}")
    max_rows, batch_dimension = _rows(metadata.inputs, _stated(config), section.max_batch_size)
    return Contract(metadata.inputs, metadata.outputs, max_rows, batch_dimension, main)


def _stated(config: Mapping[str, Any] | None) -> int | None:
    """The configuration's `max_batch_size`; None where there is no configuration."""
    if config is None:
        return None
    stated = config.get("max_batch_size", 0)
    if not isinstance(stated, int) or isinstance(stated, bool) or stated < 0:
        raise Mismatch(f"the predictor's configuration has max_batch_size {stated!r}; it must be a number >= 0")
    return stated


def _rows(inputs: tuple[TensorMetadata, ...], stated: int | None, ours: int | None) -> tuple[int | None, bool]:
    """(how many instances a call may hold, whether tensors have a batch dimension).

    `stated` is the predictor's `max_batch_size`, `ours` the transformer's, which may only make it smaller.
    """
    if stated:
        if ours is not None and ours > stated:
            raise Mismatch(
                f"the transformer's predictor.max_batch_size is {ours}, "
                f"the predictor's model has max_batch_size {stated}"
            )
        return ours or stated, True
    if all(tensor.shape[:1] == (-1,) for tensor in inputs):
        without_config = 1 if stated is None else None
        return (without_config if ours is None else ours or None), True
    if ours is not None and ours > 1:
        shapes = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in inputs)
        raise Mismatch(
            f"the transformer's predictor.max_batch_size is {ours}, the predictor's model takes one instance a call "
            f"({shapes} has no variable first dimension)"
        )
    return 1, False


def check_pictures(contract: Contract, shape: tuple[int, int, int] | None, channels: int) -> None:
    """Whether FP32 pictures of [C, H, W] fit the main input.  `shape` None: height and width vary.

    Raises:
        Mismatch: they do not; the message names both sides and the remedy.
    """
    tensor = contract.main_input
    where = f"the predictor's input '{tensor.name}'"
    if tensor.datatype != "FP32":
        raise Mismatch(f"the transformer sends FP32 pictures, {where} takes {tensor.datatype}")
    others = [other.name for other in contract.inputs if other is not tensor]
    if others:
        raise Mismatch(
            f"the transformer sends one picture tensor, the predictor's model also needs {', '.join(others)}; "
            "write a preprocess_instance hook that returns all of them"
        )
    ours = shape or (channels, -1, -1)
    theirs = contract.element_shape(tensor)
    if not contract.batch_dimension and len(theirs) == 4 and theirs[0] in (1, -1):
        theirs = theirs[1:]  # one picture a call, in a declared batch of one
    fits = len(theirs) == 3 and all(a == b or -1 in (a, b) for a, b in zip(ours, theirs, strict=True))
    if not fits:
        raise Mismatch(
            f"the transformer makes pictures of {_text(ours)} (channels, height, width), {where} takes "
            f"{_text(theirs)}; set image.mode, image.resize and image.center_crop to match"
        )


def check_output(contract: Contract, output: str | None) -> TensorMetadata | None:
    """The output that is configured (None: the first), as declared; None from a server that does not tell.

    Raises:
        Mismatch: the model has no such output.
    """
    if not contract.outputs:
        return None  # the first answer will tell
    if output is None:
        return contract.outputs[0]
    for tensor in contract.outputs:
        if tensor.name == output:
            return tensor
    names = ", ".join(tensor.name for tensor in contract.outputs)
    raise Mismatch(f"the transformer's output.output is '{output}', the predictor's model has {names}")


def check_classes(contract: Contract, output: str | None, labels: int | None) -> None:
    """Whether the classified output exists, holds numbers, and has as many classes as there are labels.

    Raises:
        Mismatch: it does not.
    """
    tensor = check_output(contract, output)
    if tensor is None:
        return
    if tensor.datatype == "BYTES":
        raise Mismatch(f"the transformer classifies numbers, the predictor's output '{tensor.name}' is BYTES")
    classes = contract.element_shape(tensor)[-1:]
    if labels is not None and classes and classes[0] not in (-1, labels):
        raise Mismatch(
            f"the transformer has {labels} labels, the predictor's output '{tensor.name}' has {classes[0]} classes"
        )


def _text(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join("any" if side == -1 else str(side) for side in shape) + "]"
