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
    """The contract out of what the predictor says, the transformer's own settings winning.

    `config` is the JSON model configuration, or None where the server has no such route: then a
    leading -1 is taken for the batch dimension, and a call holds one instance unless
    `predictor.max_batch_size` says more.

    With `max_batch_size` 0 the model does not batch by itself: a leading -1 takes all instances, anything
    else one instance a call in the declared shape.

    Raises:
        Mismatch: the model has no inputs, or not the one that is configured.
    """
    if not metadata.inputs:
        raise Mismatch(f"the predictor says that model '{metadata.name}' has no inputs; its metadata must name them")
    wanted = section.input
    main = next((tensor for tensor in metadata.inputs if wanted in (None, tensor.name)), None)
    if main is None:
        names = ", ".join(tensor.name for tensor in metadata.inputs)
        raise Mismatch(f"the transformer's predictor.input is '{wanted}', the predictor's model has {names}")
    max_batch_size = section.max_batch_size
    if max_batch_size is None:
        stated = config.get("max_batch_size", 0) if config is not None else 1
        if not isinstance(stated, int) or isinstance(stated, bool) or stated < 0:
            raise Mismatch(f"the predictor's configuration has max_batch_size {stated!r}; it must be a number >= 0")
        max_batch_size = stated
    leading_variable = all(tensor.shape[:1] == (-1,) for tensor in metadata.inputs)
    if max_batch_size > 0 and (config is not None or leading_variable):
        max_rows, batch_dimension = max_batch_size, True
    elif max_batch_size == 0 and leading_variable:
        max_rows, batch_dimension = None, True
    else:
        max_rows, batch_dimension = 1, False
    return Contract(metadata.inputs, metadata.outputs, max_rows, batch_dimension, main)


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


def check_labels(contract: Contract, output: str | None, labels: int | None) -> None:
    """Whether the classified output exists and has as many classes as there are labels.

    Raises:
        Mismatch: no such output, or the numbers differ.
    """
    if not contract.outputs:
        return  # a server that does not tell; the first answer will
    names = [tensor.name for tensor in contract.outputs]
    if output is not None and output not in names:
        raise Mismatch(f"the transformer's output.output is '{output}', the predictor's model has {', '.join(names)}")
    tensor = contract.outputs[names.index(output) if output else 0]
    classes = contract.element_shape(tensor)[-1:]
    if labels is not None and classes and classes[0] not in (-1, labels):
        raise Mismatch(
            f"the transformer has {labels} labels, the predictor's output '{tensor.name}' has {classes[0]} classes"
        )


def _text(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join("any" if side == -1 else str(side) for side in shape) + "]"
