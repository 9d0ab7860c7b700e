"""`TORCH_COMPILE_OPTIONAL_PARAMETERS`: keyword arguments of torch.compile as a JSON object.

A pure reading; the keys are those of Triton's Python runtime for PyTorch.  Knows no torch.
"""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

KEY = "TORCH_COMPILE_OPTIONAL_PARAMETERS"

_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "fullgraph": ((bool,), "true or false"),
    "dynamic": ((bool, type(None)), "true, false or null"),
    "backend": ((str,), "a string"),
    "mode": ((str, type(None)), "a string or null"),
    "options": ((dict, type(None)), "an object or null"),
    "disable": ((bool,), "true or false"),
}


def read_compile_options(text: str) -> dict[str, Any]:
    """The keyword arguments for torch.compile.

    Raises:
        ValueError: the text is no such object; the message says where and what would be right.
    """
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"parameter {KEY} is not JSON: {error.msg} at column {error.colno}; write an object, as in "
            '{\\"disable\\": true}'
        ) from None
    except RecursionError:
        raise ValueError(f"parameter {KEY} is nested too deeply") from None
    if not isinstance(options, dict):
        raise ValueError(  # noqa: TRY004  (the text is at fault, not a type of ours)
            f'parameter {KEY} is JSON but no object; write it as {{\\"disable\\": true}}'
        )
    for key, value in options.items():
        if key not in _KINDS:
            near = get_close_matches(key, _KINDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(_KINDS)}"
            raise ValueError(f"parameter {KEY} has the key {key[:80]!r}, which is not for a model to set; {hint}")
        kinds, wanted = _KINDS[key]
        if not isinstance(value, kinds):
            raise ValueError(  # noqa: TRY004
                f"parameter {KEY}: {key!r} is {json.dumps(value)[:80]}; it takes {wanted}"
            )
    if options.get("mode") and options.get("options"):
        raise ValueError(f"parameter {KEY} has both 'mode' and 'options'; torch.compile takes one of them")
    return options
