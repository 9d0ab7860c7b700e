"""The V2 messages as values: requests, answers and metadata.

Knows no encoding and no transport.  Shapes here are wire shapes: they include the batch dimension,
and -1 stands for a dimension that may vary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from oip.tensors import Tensor


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An entry of a request's `outputs`; `binary` asks for the binary form of this output."""

    name: str
    binary: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """One inference call.

    `model_version` "" means whichever version the server's policy prefers.  No `outputs` means all
    of them; `binary_output` then asks for their binary form.
    """

    model_name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    model_version: str = ""
    id: str = ""
    binary_output: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InferenceResponse:
    """The answer to one call, its outputs in the order in which they were asked for."""

    model_name: str
    model_version: str
    outputs: tuple[Tensor, ...]
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def output(self, name: str) -> Tensor:
        """The output of that name.

        Raises:
            KeyError: there is none; the message lists what there is.
        """
        for tensor in self.outputs:
            if tensor.name == name:
                return tensor
        raise KeyError(f"no output {name!r}; there are {', '.join(t.name for t in self.outputs)}")


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """An input or output as a model declares it."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What `GET /v2/models/<name>` tells."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """What `GET /v2` tells."""

    name: str
    version: str
    extensions: tuple[str, ...]
