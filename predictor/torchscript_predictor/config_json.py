"""A model configuration as the JSON of Triton's model configuration extension.

Proto field names, enums by name, and 64-bit integers as JSON numbers (protobuf's own JSON would make
them strings); fields without presence are written even when they hold their default, as Triton does.
"""

from typing import Any

from google.protobuf.descriptor import FieldDescriptor


def config_json(message: Any) -> dict[str, Any]:
    """The message as a JSON object, its fields in the order of the proto."""
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            result[field.name] = _map(field, value) if _is_map(field) else [_scalar(field, item) for item in value]
        elif not field.has_presence or message.HasField(field.name):
            result[field.name] = _scalar(field, value)
    return result


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _map(field: FieldDescriptor, entries: Any) -> dict[str, Any]:
    assert field.message_type is not None
    value_field = field.message_type.fields_by_name["value"]
    return {str(key): _scalar(value_field, entries[key]) for key in sorted(entries)}


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return config_json(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return value
