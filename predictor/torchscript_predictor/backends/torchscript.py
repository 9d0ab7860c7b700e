"""The TorchScript runtime: `model.pt` as torch.jit wrote it.

Loads a file into a `Program`; all else is `program`'s.
"""

import dataclasses
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from torchscript_predictor.backends import LoadError
from torchscript_predictor.backends.describing import describe
from torchscript_predictor.backends.failure import reason
from torchscript_predictor.backends.program import Program, TorchModel, input_device, state_of
from torchscript_predictor.backends.sharing import leaves_nothing_behind
from torchscript_predictor.model_config import Description, ModelConfig
from torchscript_predictor.signature import REQUIRED, Argument

# Every call of torch.jit warns that it is deprecated; to serve TorchScript is this module's purpose.  The
# filter is set once for the process because warnings.catch_warnings is not safe with several loading threads.
warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated")


class TorchScriptBackend:
    """Loads `model.pt` files."""

    def gpu_count(self) -> int:
        """See `Backend.gpu_count`."""
        return torch.cuda.device_count()

    def load(self, path: Path, config: ModelConfig, device: str | None) -> TorchModel:
        """See `Backend.load`."""
        return TorchModel(self.open(path, config, device), config)

    def describe(self, path: Path, config: ModelConfig) -> Description:
        """See `Backend.describe`."""
        program = self.open(path, config, "cpu")
        # each shape is run once or twice: to optimise for it would cost seconds
        return describe(dataclasses.replace(program, modes=(_unoptimized,)), config)

    def open(self, path: Path, config: ModelConfig, device: str | None) -> Program:
        """The program of a file.

        Raises:
            LoadError: the file is no TorchScript, or has no such method.
        """
        try:
            module = torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]
        except Exception as error:
            raise LoadError(f"failed to load model '{config.name}': {_load_reason(error)}") from error
        name = config.parameters.method
        method: Any = getattr(module, name, None)
        if not hasattr(method, "schema"):
            methods = ", ".join(sorted(each for each in module._c._method_names() if not each.startswith("_")))
            raise LoadError(
                f"failed to load model '{config.name}': it has no method '{name}', it has {methods or 'none'}; set the "
                "parameter MODULE_METHOD_NAME to one of these, or script the method with torch.jit.export"
            )
        optimized = config.parameters.optimized_execution
        return Program(
            call=module if name == "forward" else method,
            arguments=tuple(_argument(argument) for argument in method.schema.arguments[1:]),  # without self
            state=state_of(module),
            input_device=input_device(device),
            leaves_nothing_behind=lambda execute: leaves_nothing_behind(module, method.inlined_graph, execute),
            modes=() if optimized else (_unoptimized,),
        )


def _unoptimized() -> AbstractContextManager[Any]:
    """Switches the graph executor's optimisations off, in the calling thread."""
    return torch.jit.optimized_execution(False)  # type: ignore[attr-defined]


def _argument(argument: Any) -> Argument:
    default = argument.default_value if argument.has_default_value() else REQUIRED
    return Argument(argument.name, argument.type.annotation_str, default)


def _load_reason(error: Exception) -> str:
    text = reason(error)
    if "constants.pkl" in text:
        return (
            f"{text} The file is no TorchScript archive; write it with torch.jit.script(model).save(...). If it is the "
            'state dict of a model.py, set runtime: "model.py"'
        )
    return text
