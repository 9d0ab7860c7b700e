"""How the tensors of a configuration meet the arguments and results of a TorchScript `forward`.

Pure rules over names and types (Triton's, PyTorch backend, "naming convention"); knows no torch.

Inputs, the first rule that fits all names decides:
1. `forward` takes one dictionary of tensors: the configured names are its keys;
2. every name is the name of a `forward` argument;
3. every name is `<name>__<index>`, the index counting arguments from 0;
4. the order of the configuration, with a warning.
Outputs: every name is `<name>__<index>`, else the order of the configuration.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

_INDEXED = re.compile(r".*__([0-9]{1,6})", re.DOTALL)


class ArgumentKind(Enum):
    """What an argument of `forward` takes."""

    TENSOR = "Tensor"
    STRINGS = "List[str]"
    DICT = "Dict[str, Tensor]"


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of `forward` after `self`; `type` as the schema spells it, such as "Optional[Tensor]"."""

    name: str
    type: str

    @property
    def kind(self) -> ArgumentKind | None:
        """None for a type that cannot be served."""
        try:
            return ArgumentKind(self.type)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class InputPlan:
    """Names of inputs in the order of the arguments; or, `as_dict`, the keys of the one argument."""

    names: tuple[str, ...]
    as_dict: bool = False
    warnings: tuple[str, ...] = ()


class SignatureError(ValueError):
    """The configuration does not fit `forward`; the message names model, field and remedy."""


def plan_inputs(model_name: str, arguments: Sequence[Argument], inputs: Sequence[tuple[str, str]]) -> InputPlan:
    """How the configured inputs, (name, datatype) in order, become arguments.

    Raises:
        SignatureError: the arguments are of a kind or number that the inputs do not fit.
    """
    names = [name for name, _ in inputs]
    dictionaries = [argument for argument in arguments if argument.type.startswith("Dict[")]
    if dictionaries and len(arguments) > 1:
        raise SignatureError(
            f"model '{model_name}': forward takes argument '{dictionaries[0].name}' of type {dictionaries[0].type} "
            f"beside others; only a single input of type Dict[str, Tensor] is supported, or inputs of type Tensor"
        )
    for argument in arguments:
        if argument.kind is None:
            raise SignatureError(
                f"model '{model_name}': an input of type '{argument.type}' was detected in the model (argument "
                f"'{argument.name}'). Only a single input of type Dict[str, Tensor], or inputs of type Tensor or "
                f"List[str] are supported; wrap the model in a module whose forward takes those"
            )
    if dictionaries:
        for name, datatype in inputs:
            if datatype == "BYTES":
                raise SignatureError(
                    f"model '{model_name}': input '{name}' is TYPE_STRING, but forward takes a dictionary of tensors"
                )
        return InputPlan(tuple(names), as_dict=True)
    if len(arguments) != len(inputs):
        raise SignatureError(
            f"unable to load model '{model_name}', configuration expects {len(inputs)} inputs, model provides "
            f"{len(arguments)}; forward takes ({', '.join(f'{a.name}: {a.type}' for a in arguments)}), and every "
            "argument needs one input, those with a default too"
        )
    plan = _plan_names(model_name, [argument.name for argument in arguments], names)
    datatypes = dict(inputs)
    for name, argument in zip(plan.names, arguments, strict=True):
        if (datatypes[name] == "BYTES") != (argument.kind is ArgumentKind.STRINGS):
            raise SignatureError(
                f"model '{model_name}': input '{name}' is {datatypes[name]}, but argument '{argument.name}' of forward "
                f"takes {argument.type}; TYPE_STRING inputs go with List[str], all others with Tensor"
            )
    return plan


def _plan_names(model_name: str, arguments: list[str], names: list[str]) -> InputPlan:
    if sorted(arguments) == sorted(names):
        return InputPlan(tuple(arguments))
    indices = indices_of(names)
    if indices is not None:
        if sorted(indices) != list(range(len(names))):
            raise SignatureError(
                f"model '{model_name}': inputs {', '.join(names)} must be numbered __0 to __{len(names) - 1}, each "
                "number once: the number is the position of a forward argument"
            )
        return InputPlan(tuple(name for _, name in sorted(zip(indices, names, strict=True))))
    warning = (
        f"model '{model_name}': inputs {', '.join(names)} are neither the names of forward's arguments "
        f"({', '.join(arguments)}) nor all <name>__<index>; they are taken in the order of the configuration"
    )
    return InputPlan(tuple(names), warnings=(warning,))


def plan_outputs(names: Sequence[str]) -> tuple[int, ...]:
    """For each configured output, in order, its index among the results."""
    indices = indices_of(names)
    return tuple(range(len(names))) if indices is None else tuple(indices)


def indices_of(names: Sequence[str]) -> list[int] | None:
    """The index in each `<name>__<index>`, or None unless every name has one."""
    matches = [_INDEXED.fullmatch(name) for name in names]
    return [int(match[1]) for match in matches if match] if all(matches) else None
