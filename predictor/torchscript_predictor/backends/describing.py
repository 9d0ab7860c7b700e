"""A loaded program's inputs and outputs, found out by running it on zeros.

Runs what `deriving` wants tried; decides nothing.
"""

from collections.abc import Sequence
from typing import Any

import torch

from torchscript_predictor.backends import LoadError
from torchscript_predictor.backends.arrays import DTYPES, STRING, data_type_of, shape_of
from torchscript_predictor.backends.failure import reason
from torchscript_predictor.backends.program import Program, modes
from torchscript_predictor.deriving import DerivationError, Result, Trial, TrialError, derive
from torchscript_predictor.model_config import Description, ModelConfig
from torchscript_predictor.signature import Argument, ArgumentKind, leaves


def describe(program: Program, config: ModelConfig) -> Description:
    """The description of a program.

    Raises:
        LoadError: it could not be found out; the message says what to write.
    """

    def run(trials: Sequence[Trial]) -> list[Result]:
        given = iter(trials)
        arguments = [
            argument.absent if argument.omissible else _zeros(argument, next(given), program.input_device)
            for argument in program.arguments
        ]
        try:
            with modes(program, inference_mode=config.parameters.inference_mode):
                found = leaves(program.call(*arguments))
        except Exception as error:  # whatever a model raises says that it does not take this
            raise TrialError(reason(error)) from None
        return [Result(leaf.name, _known(leaf.value, leaf.path), shape_of(leaf.value)) for leaf in found]

    weights = [Trial(data_type_of(tensor), tuple(tensor.shape)) for tensor in program.state]
    try:
        return derive(program.arguments, weights, run, max_batch_size=config.max_batch_size)
    except DerivationError as error:
        raise LoadError(f"the inputs and outputs of model '{config.name}' cannot be derived: {error}") from None


def _known(value: Any, path: str) -> str:
    data_type = data_type_of(value)
    if data_type not in (*DTYPES, STRING):
        raise DerivationError(f"{path} is {data_type}, which the protocol has no datatype for; change the model")
    return data_type


def _zeros(argument: Argument, trial: Trial, device: torch.device | None) -> Any:
    match argument.kind:
        case ArgumentKind.STRINGS:
            return ["a"]
        case ArgumentKind.STRING:
            return "a"
        case ArgumentKind.INT:
            return 1
        case ArgumentKind.FLOAT:
            return 1.0
        case ArgumentKind.BOOL:
            return False
        case _:
            return torch.zeros(trial.shape, dtype=DTYPES[trial.data_type], device=device)
