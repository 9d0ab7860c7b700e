"""What every PyTorch runtime loads, and how a configuration's tensors go through it.

A runtime turns a file into a `Program`: a function with a signature.  `TorchModel` is the rest, the same for all of
them: names, conversions, modes, errors.  Knows no file format.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from oip.errors import InferenceError, Internal, InvalidArgument
from torchscript_predictor.backends import LoadError
from torchscript_predictor.backends.arrays import Converter
from torchscript_predictor.backends.failure import reason
from torchscript_predictor.backends.process_wide import PROCESS
from torchscript_predictor.model_config import ModelConfig, ModelInput
from torchscript_predictor.signature import (
    Argument,
    ArgumentKind,
    Leaf,
    SignatureError,
    leaves,
    match_outputs,
    plan_inputs,
)

logger = logging.getLogger(__name__)

FAILURE = "PyTorch execute failure: "
MAX_STRUCTURES = 64
"""Kinds of results that are remembered; a model whose dictionary has other keys each time must not fill the memory."""


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded function of tensors.

    `call` takes one value for each of the `arguments`.  `state` are the tensors that it owns, `input_device` is where
    its inputs belong, None for the CPU.  `modes` make what a call runs in, besides inference mode.
    `leaves_nothing_behind` says whether several threads may call it, tried with one execution; None: nobody can tell.
    """

    call: Callable[..., Any]
    arguments: tuple[Argument, ...]
    state: tuple[torch.Tensor, ...] = ()
    input_device: torch.device | None = None
    warnings: tuple[str, ...] = ()
    modes: tuple[Callable[[], AbstractContextManager[Any]], ...] = ()
    leaves_nothing_behind: Callable[[Callable[[], object]], bool] | None = None


class TorchModel:
    """Implements `LoadedModel` with a program."""

    def __init__(self, program: Program, config: ModelConfig) -> None:
        """
        Raises:
            LoadError: the configuration does not fit the program's arguments.
        """
        try:
            plan = plan_inputs(
                config.name,
                program.arguments,
                [(tensor.name, tensor.datatype) for tensor in config.inputs],
                [tensor.name for tensor in config.inputs if tensor.optional],
            )
        except SignatureError as error:
            raise LoadError(str(error)) from None
        device = program.input_device
        self._warnings = (
            *plan.warnings,
            *program.warnings,
            *PROCESS.apply(config.name, config.parameters.process_wide),
        )
        self._name = config.name
        self._program = program
        self._as_dict = plan.as_dict
        self._inputs = [None if name is None else config.input(name) for name in plan.names]
        self._outputs = config.outputs
        self._output_names = [output.name for output in config.outputs]
        self._orders: dict[tuple[tuple[str, str], ...], tuple[int, ...]] = {}
        self._first_input = config.inputs[0].name
        self._batching = config.max_batch_size > 0
        self._inference_mode = config.parameters.inference_mode
        self._empties_cache = config.parameters.cache_cleaning and device is not None and device.type == "cuda"
        state = frozenset(tensor.untyped_storage().data_ptr() for tensor in program.state)
        self._converter = Converter(
            config.name,
            batching=self._batching,
            device=device,
            is_state=lambda tensor: tensor.untyped_storage().data_ptr() in state,
        )
        logger.info(
            "model %s: inference mode is %s, optimized execution is %s, cache cleaning is %s",
            config.name,
            *(
                "enabled" if enabled else "disabled"
                for enabled in (
                    self._inference_mode,
                    config.parameters.optimized_execution,
                    self._empties_cache,
                )
            ),
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """See `LoadedModel.warnings`."""
        return self._warnings

    def enter_thread(self, intra_op_threads: int) -> None:
        """See `LoadedModel.enter_thread`."""
        # A thread begins with the count that any thread set last; its first question or operation settles it, so
        # without this question another instance's setting would replace ours.
        torch.get_num_threads()
        torch.set_num_threads(intra_op_threads)

    def is_shareable(self, inputs: Mapping[str, np.ndarray]) -> bool:
        """See `Shareable.is_shareable`."""
        tell = self._program.leaves_nothing_behind
        return tell is not None and tell(lambda: self.execute(inputs))

    def execute(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `LoadedModel.execute`."""
        try:
            with modes(self._program, inference_mode=self._inference_mode):
                result = self._program.call(*self._arguments(inputs))
                found = leaves(result)
                rows = self._rows(inputs)
                return {
                    output.name: self._converter.output(output, self._leaf(output.name, index, found), rows)
                    for output, index in zip(self._outputs, self._order(found), strict=True)
                }
        except InferenceError:
            raise
        except Exception as error:
            raise Internal(FAILURE + reason(error)) from error
        finally:
            if self._empties_cache:
                torch.cuda.empty_cache()

    def _arguments(self, inputs: Mapping[str, np.ndarray]) -> list[Any]:
        if self._as_dict:
            return [
                {
                    tensor.name: self._converter.argument(tensor, ArgumentKind.DICT, inputs[tensor.name])
                    for tensor in self._inputs
                    if tensor is not None and tensor.name in inputs
                }
            ]
        return [
            self._argument(argument, tensor, inputs)
            for argument, tensor in zip(self._program.arguments, self._inputs, strict=True)
        ]

    def _argument(self, argument: Argument, tensor: ModelInput | None, inputs: Mapping[str, np.ndarray]) -> Any:
        if tensor is None or tensor.name not in inputs:
            return argument.absent
        assert argument.kind is not None
        return self._converter.argument(tensor, argument.kind, inputs[tensor.name])

    def _rows(self, inputs: Mapping[str, np.ndarray]) -> int:
        array = inputs.get(self._first_input)
        if array is None:
            array = next(iter(inputs.values()), None)
        return len(array) if self._batching and array is not None and array.ndim else 1

    def _order(self, found: Sequence[Leaf]) -> tuple[int, ...]:
        structure = tuple((leaf.path, leaf.name) for leaf in found)
        order = self._orders.get(structure)
        if order is None:
            try:
                order = match_outputs(self._name, self._output_names, found)
            except SignatureError as error:
                raise InvalidArgument(str(error)) from None
            if len(self._orders) < MAX_STRUCTURES:
                self._orders[structure] = order
        return order

    @staticmethod
    def _leaf(name: str, index: int, found: Sequence[Leaf]) -> Any:
        if index >= len(found):
            raise InvalidArgument(
                f"The output {name} in the model configuration refers to an output index which doesn't exist. "
                f"This model has {len(found)} outputs"
            )
        return found[index].value


def modes(program: Program, *, inference_mode: bool = True) -> AbstractContextManager[Any]:
    """What a call of the program runs in: no gradients, and what its runtime asks for."""
    mode = torch.inference_mode() if inference_mode else torch.no_grad()
    if not program.modes:
        return mode
    stack = ExitStack()
    stack.enter_context(mode)
    for make in program.modes:
        stack.enter_context(make())
    return stack


def state_of(module: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    """The tensors that a module owns."""
    tensors: Iterable[torch.Tensor] = (*module.parameters(), *module.buffers())
    return tuple(tensors)


def input_device(device: str | None) -> torch.device | None:
    """Where inputs go for an instance on `device`; None for the CPU."""
    return None if device in (None, "cpu") else torch.device(str(device))
