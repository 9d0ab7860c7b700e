"""The seam between the predictor and whatever executes models: two small protocols.

    choice.PyTorchBackend          hands each model to the backend of its runtime
    ├── torchscript                model.pt, by torch.jit
    ├── eager                      model.py and a state dict, by torch.compile
    └── exported                   model.pt2, by torch.export or AOTInductor

Each of the three turns a file into a `program.Program`, a function with a signature; `program.TorchModel` does the rest
for all of them.

A backend loads a file and executes tensors.  It knows no queue, no thread but the caller's, and no wire
protocol; what is above knows no torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from torchscript_predictor.model_config import Description, ModelConfig


class LoadError(Exception):
    """A model that cannot be loaded; the message says why, without a path of this machine."""


class LoadedModel(Protocol):
    """One loaded copy of a model version."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What an operator should know about how the configuration was understood."""

    def enter_thread(self, intra_op_threads: int) -> None:
        """Prepare the calling thread, which will execute this model from now on."""

    def execute(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the model on one batch.  Blocks; the interpreter is free for other threads meanwhile.

        Args:
            inputs: every configured input by name, optional ones if given, of its wire shape and datatype's numpy form
                (BF16 as uint16 bits, strings as bytes objects).  A writeable array is the model's to write
                into, a read-only one is copied where need be.

        Returns:
            Every configured output by name, C-contiguous, of its wire shape and numpy form.  The arrays are
            the caller's to keep: no later execution changes them.

        Raises:
            InvalidArgument: an input's elements are not what the model can take, or an output is not
                of the configured datatype or index.
            Internal: the model failed; the message is its reason, without traceback and paths.
        """


@runtime_checkable
class Shareable(Protocol):
    """What a `LoadedModel` may be besides: one that several threads could execute at the same time."""

    def is_shareable(self, inputs: Mapping[str, np.ndarray]) -> bool:
        """Whether an execution leaves nothing behind, tried with these inputs on the calling thread.

        Raises:
            InferenceError: the model does not execute these inputs.
        """


class Backend(Protocol):
    """Something that can load models."""

    def gpu_count(self) -> int:
        """How many GPUs models may be placed on."""

    def load(self, path: Path, config: ModelConfig, device: str | None) -> LoadedModel:
        """Load one copy onto a device, "cpu" or "cuda:<n>"; None leaves it where the model says.

        Raises:
            LoadError: the file or its signature does not fit.
        """

    def describe(self, path: Path, config: ModelConfig) -> Description:
        """Find out the inputs and outputs of a model that `config` has none for, by loading and running it.

        Raises:
            LoadError: the file does not fit, or does not tell.
        """


@runtime_checkable
class CachesMemory(Protocol):
    """A backend that keeps memory of models that are gone."""

    def release_memory(self) -> None:
        """Give it back to the machine; from any thread."""
