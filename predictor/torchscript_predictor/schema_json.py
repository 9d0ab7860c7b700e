"""ModelMesh's `schema.json`: inputs and outputs beside a model, in V2's words.

A pure reading: `{"inputs": [{"name", "datatype", "shape"}], "outputs": [...]}`; `shape` includes the batch
dimension, -1 is a variable one.  Knows no file system.
"""

import json
from dataclasses import dataclass
from typing import Any

from oip.datatypes import DATATYPES

FILES = ("schema.json", "_schema.json")
"""The second is what ModelMesh's adapter calls it in the folders that it makes."""


class SchemaError(ValueError):
    """No such schema; the message names file, entry and remedy."""


@dataclass(frozen=True, slots=True)
class SchemaTensor:
    """An entry of `inputs` or `outputs`."""

    name: str
    data_type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Schema:
    """The whole file."""

    inputs: tuple[SchemaTensor, ...]
    outputs: tuple[SchemaTensor, ...]

    def amend(self, message: Any) -> list[str]:
        """Put the schema into a `ModelConfig` message, as ModelMesh does; what to tell the operator.

        The batch dimension is left out where the message has a max_batch_size.
        """
        warnings = []
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            configured = {entry.name: entry for entry in getattr(message, kind)}
            entries = [self._entry(message, kind, tensor, configured.get(tensor.name)) for tensor in tensors]
            if configured and list(configured.values()) != entries:
                warnings.append(f"the {kind}s of schema.json replace those of config.pbtxt, which differ")
            del getattr(message, kind)[:]
            getattr(message, kind).extend(entries)
        return warnings

    @staticmethod
    def _entry(message: Any, kind: str, tensor: SchemaTensor, configured: Any) -> Any:
        entry = getattr(type(message)(), kind).add()
        if configured is not None:
            entry.CopyFrom(configured)  # for its reshape and labels
        entry.name = tensor.name
        entry.data_type = entry.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name[tensor.data_type].number
        del entry.dims[:]
        entry.dims.extend(tensor.shape[1:] if message.max_batch_size > 0 else tensor.shape)
        return entry


def read_schema(text: str, file: str) -> Schema:
    """The schema in a file's text; `file` is what to call it.

    Raises:
        SchemaError: it is no JSON, or not of this form.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise SchemaError(f"{file}:{error.lineno}: {error.msg}; a schema is a JSON object") from None
    except RecursionError:
        raise SchemaError(f"{file} is nested too deeply") from None
    if not isinstance(document, dict):
        raise SchemaError(f'{file} is no JSON object; write {{"inputs": [...], "outputs": [...]}}')
    return Schema(_tensors(document, "inputs", file), _tensors(document, "outputs", file))


def _tensors(document: dict[str, Any], key: str, file: str) -> tuple[SchemaTensor, ...]:
    entries = document.get(key)
    if not isinstance(entries, list) or not entries:
        raise SchemaError(
            f'{file}: {key} must be a list with at least one {{"name": ..., "datatype": "FP32", "shape": [-1, 3]}}'
        )
    return tuple(_tensor(entry, f"{key}[{index}]", file) for index, entry in enumerate(entries))


def _tensor(entry: Any, where: str, file: str) -> SchemaTensor:
    if not isinstance(entry, dict):
        raise SchemaError(f"{file}: {where} is no object; give it name, datatype and shape")
    name, datatype, shape = entry.get("name"), entry.get("datatype"), entry.get("shape")
    if not isinstance(name, str) or not name:
        raise SchemaError(f"{file}: {where} has no name; give it one, such as INPUT__0")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise SchemaError(f"{file}: {where}.datatype is {str(datatype)[:80]!r}; it is one of {', '.join(DATATYPES)}")
    if not (isinstance(shape, list) and shape and all(type(size) is int and size >= -1 and size for size in shape)):
        raise SchemaError(
            f"{file}: {where}.shape is {str(shape)[:80]}; it is a list of sizes with the batch dimension, -1 for any"
        )
    return SchemaTensor(name, DATATYPES[datatype].config_name, tuple(shape))
