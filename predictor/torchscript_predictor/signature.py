"""How the tensors of a configuration meet the arguments and results of a model's `forward`.

Pure rules over names and types (Triton's, PyTorch backend, "naming convention"); knows no torch.

Inputs, the first rule that fits all names decides:
1. `forward` takes one dictionary of tensors: the configured names are its keys;
2. every name is the name of a `forward` argument;
3. every name is `<name>__<index>`, the index counting arguments from 0;
4. the order of the configuration, with a warning.
Outputs: every name is a key or field of the results; every name is `<name>__<index>`; the order of the
configuration.

Triton takes tensors alone and wants an input for every argument.  Here an argument may also be a number, a
bool, a string or Optional, and one with a default (or Optional) needs no input.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

_INDEXED = re.compile(r".*__([0-9]{1,6})", re.DOTALL)
_OPTIONAL = re.compile(r"Optional\[(.+)\]")

REQUIRED: Any = object()
"""An argument's default where it has none."""


class ArgumentKind(Enum):
    """What an argument of `forward` takes."""

    TENSOR = "Tensor"
    STRINGS = "List[str]"
    DICT = "Dict[str, Tensor]"
    STRING = "str"
    INT = "int"
    FLOAT = "float"
    BOOL = "bool"


_DATATYPES = {
    ArgumentKind.STRINGS: ("BYTES",),
    ArgumentKind.STRING: ("BYTES",),
    ArgumentKind.INT: ("INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8"),
    ArgumentKind.FLOAT: ("FP64", "FP32", "FP16"),
    ArgumentKind.BOOL: ("BOOL",),
}


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of `forward` after `self`; `type` as TorchScript spells it, such as "Optional[Tensor]".

    `aliases` are further names that a configuration may call it by.
    """

    name: str
    type: str
    default: Any = REQUIRED
    aliases: tuple[str, ...] = ()

    @property
    def kind(self) -> ArgumentKind | None:
        """What it takes, if not None; None for a type that cannot be served."""
        optional = _OPTIONAL.fullmatch(self.type)
        try:
            return ArgumentKind(optional[1] if optional else self.type)
        except ValueError:
            return None

    @property
    def omissible(self) -> bool:
        """Whether a call may leave it out."""
        return self.default is not REQUIRED or self.type.startswith("Optional[")

    @property
    def absent(self) -> Any:
        """What to pass where a call leaves it out."""
        return None if self.default is REQUIRED else self.default


@dataclass(frozen=True, slots=True)
class InputPlan:
    """One input's name for each argument, None where it is left out; or, `as_dict`, the keys of the one argument."""

    names: tuple[str | None, ...]
    as_dict: bool = False
    warnings: tuple[str, ...] = ()


class SignatureError(ValueError):
    """The configuration does not fit `forward`; the message names model, field and remedy."""


def plan_inputs(
    model_name: str,
    arguments: Sequence[Argument],
    inputs: Sequence[tuple[str, str]],
    optional: Collection[str] = (),
) -> InputPlan:
    """How the configured inputs, (name, datatype) in order, become arguments.

    Args:
        optional: the names of those that a request may leave out.

    Raises:
        SignatureError: the arguments are of a kind or number that the inputs do not fit.
    """
    for argument in arguments:
        if argument.kind is None and not argument.omissible:
            raise SignatureError(
                f"model '{model_name}': an input of type '{argument.type}' was detected in the model (argument "
                f"'{argument.name}'). Only a single input of type Dict[str, Tensor], or inputs of type Tensor, "
                "List[str], int, float, bool, str and Optional of these are supported; wrap the model in a module "
                "whose forward takes those"
            )
    required = [argument for argument in arguments if not argument.omissible]
    dictionaries = [argument for argument in required if argument.kind is ArgumentKind.DICT]
    if dictionaries and len(required) > 1:
        raise SignatureError(
            f"model '{model_name}': forward takes argument '{dictionaries[0].name}' of type {dictionaries[0].type} "
            f"beside others; only a single input of type Dict[str, Tensor] is supported, or inputs of type Tensor"
        )
    if dictionaries:
        for name, datatype in inputs:
            if datatype == "BYTES":
                raise SignatureError(
                    f"model '{model_name}': input '{name}' is TYPE_STRING, but forward takes a dictionary of tensors"
                )
        return InputPlan(tuple(name for name, _ in inputs), as_dict=True)
    usable = [argument for argument in arguments if argument.kind not in (None, ArgumentKind.DICT)]
    if not len(required) <= len(inputs) <= len(usable):
        takes = ", ".join(f"{argument.name}: {argument.type}" for argument in arguments)
        raise SignatureError(
            f"unable to load model '{model_name}', configuration expects {len(inputs)} inputs, model provides "
            f"{len(arguments)}; forward takes ({takes}), and every argument needs one input, but for those with a "
            "default"
        )
    plan = _plan_names(model_name, arguments, usable, [name for name, _ in inputs])
    datatypes = dict(inputs)
    for argument, given in zip(arguments, plan.names, strict=True):
        if given is not None:
            _check_argument(model_name, given, datatypes[given], argument, is_optional=given in optional)
        elif not argument.omissible:
            raise SignatureError(
                f"model '{model_name}': argument '{argument.name}' of forward has no input and no default; configure "
                "an input for it"
            )
    return plan


def _plan_names(
    model_name: str, arguments: Sequence[Argument], usable: Sequence[Argument], names: list[str]
) -> InputPlan:
    by_name = {alias: a.name for a in usable for alias in (*a.aliases, a.name)}
    meant = [by_name.get(name) for name in names]
    if None not in meant and len(set(meant)) == len(names):
        given = dict(zip(meant, names, strict=True))
        return InputPlan(tuple(given.get(argument.name) for argument in arguments))
    indices = indices_of(names)
    if indices is not None:
        if len(set(indices)) < len(indices) or max(indices) >= len(arguments):
            raise SignatureError(
                f"model '{model_name}': inputs {', '.join(names)} must be numbered __0 to __{len(arguments) - 1}, each "
                "number once: the number is the position of a forward argument"
            )
        numbered = dict(zip(indices, names, strict=True))
        return InputPlan(tuple(numbered.get(index) for index in range(len(arguments))))
    in_order = dict(zip((argument.name for argument in usable), names, strict=False))
    warning = (
        f"model '{model_name}': inputs {', '.join(names)} are neither the names of forward's arguments "
        f"({', '.join(argument.name for argument in arguments)}) nor all <name>__<index>; they are taken in the order "
        "of the configuration"
    )
    return InputPlan(tuple(in_order.get(argument.name) for argument in arguments), warnings=(warning,))


def _check_argument(model_name: str, name: str, datatype: str, argument: Argument, *, is_optional: bool) -> None:
    kind = argument.kind
    if kind is None:
        raise SignatureError(
            f"model '{model_name}': input '{name}' stands for argument '{argument.name}' of forward, which takes "
            f"{argument.type}; that cannot be served: leave the input out, the argument has a default"
        )
    if datatype not in _DATATYPES.get(kind, (datatype,)) or (kind is ArgumentKind.TENSOR and datatype == "BYTES"):
        raise SignatureError(
            f"model '{model_name}': input '{name}' is {datatype}, but argument '{argument.name}' of forward takes "
            f"{argument.type}; TYPE_STRING inputs go with List[str] and str, whole numbers with int, FP16 to FP64 with "
            "float, TYPE_BOOL with bool, all but TYPE_STRING with Tensor"
        )
    if is_optional and not argument.omissible:
        raise SignatureError(
            f"model '{model_name}': 'optional' is set to true for input '{name}' while argument '{argument.name}' of "
            "forward has no default and is not Optional; leave optional out, or give the argument a default"
        )


@dataclass(frozen=True, slots=True)
class Leaf:
    """One tensor, list of strings or number among the results.

    `path` is where it stands, such as "RESULT[0][boxes]" (AOTInductor's spelling); `name` is its key in a
    dictionary or its field in a NamedTuple, "" if it has none.
    """

    path: str
    name: str
    value: Any


def leaves(result: Any) -> list[Leaf]:
    """What `forward` gave, taken out of tuples, lists and dictionaries, in order."""
    return list(_leaves(result, "RESULT", ""))


def _leaves(result: Any, path: str, name: str) -> Iterator[Leaf]:
    if isinstance(result, dict):
        for key, value in result.items():
            yield from _leaves(value, f"{path}[{key}]", str(key))
    elif isinstance(result, tuple):
        fields = getattr(result, "_fields", ("",) * len(result))
        for index, (field, value) in enumerate(zip(fields, result, strict=True)):
            yield from _leaves(value, f"{path}[{index}]", field)
    elif isinstance(result, list) and not _is_plain(result):
        for index, value in enumerate(result):
            yield from _leaves(value, f"{path}[{index}]", "")
    else:
        yield Leaf(path, name, result)


def _is_plain(items: list[Any]) -> bool:
    """Whether a list is one result by itself: of strings or of numbers.  An empty one counts as strings."""
    return all(isinstance(item, str) for item in items) or all(isinstance(item, bool | int | float) for item in items)


def match_outputs(model_name: str, names: Sequence[str], found: Sequence[Leaf]) -> tuple[int, ...]:
    """For each configured output, in order, its index among the leaves.  The index may be past the end.

    Raises:
        SignatureError: the results have names, and the configured ones are others.
    """
    shared = [leaf.name for leaf in found]
    by_name = {leaf.path: index for index, leaf in enumerate(found)}
    by_name |= {name: index for index, name in enumerate(shared) if name and shared.count(name) == 1}
    if all(name in by_name for name in names):
        return tuple(by_name[name] for name in names)
    if indices_of(names) is None and _only_named(found):
        unknown = next(name for name in names if name not in by_name)
        raise SignatureError(
            f"model '{model_name}' gives no result '{unknown}'; its results are {', '.join(shared)}: name the outputs "
            "so, or all of them <name>__<index>"
        )
    return plan_outputs(names)


def _only_named(found: Sequence[Leaf]) -> bool:
    """Whether the results are a dictionary's: then their order is nobody's promise."""
    return bool(found) and all(leaf.name and leaf.path.endswith(f"[{leaf.name}]") for leaf in found)


def plan_outputs(names: Sequence[str]) -> tuple[int, ...]:
    """For each configured output, in order, its index among the results, where those have no names."""
    indices = indices_of(names)
    return tuple(range(len(names))) if indices is None else tuple(indices)


def indices_of(names: Sequence[str]) -> list[int] | None:
    """The index in each `<name>__<index>`, or None unless every name has one."""
    matches = [_INDEXED.fullmatch(name) for name in names]
    return [int(match[1]) for match in matches if match] if all(matches) else None
