"""The transformer's YAML file as checked, frozen values.

One file is one model.  Unknown keys are refused with the nearest known one; every message carries
the file and the line.  Knows no picture and no predictor: whether the values fit the predictor is
checked against its metadata at start-up (`contract`).
"""

import difflib
import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?(?:e\d{1,2})?)\s*([kmg]?i?)b?\s*", re.IGNORECASE)

MOST_PIXELS = 178_956_970
"""Pillow refuses a larger picture whatever we allow: as 8-bit RGB it takes half a gibibyte."""


class ConfigError(ValueError):
    """The configuration breaks a rule; the message is for the person who wrote the file."""


def quantity(value: Any) -> Any:
    """`10MiB`, `10Mi`, `50M`, `2e6` or a number as an integer; anything else is left to pydantic to refuse."""
    if isinstance(value, str) and (match := _QUANTITY.fullmatch(value)) and match[2].lower() in _UNITS:
        return int(float(match[1]) * _UNITS[match[2].lower()])
    return _no_boolean(value)


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _square(value: Any) -> Any:
    return {"height": value, "width": value} if not isinstance(value, dict | Size) and value is not None else value


def _no_boolean(value: Any) -> Any:
    """YAML reads `yes` and `on` as true, which pydantic would take for 1."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {str(value).lower()}")  # noqa: TRY004 (pydantic's way to refuse)
    return value


def _file_or_list(value: Any) -> Any:
    """Labels: a file's name as a path, or a tuple of texts (YAML reads `no` as false, which is no label)."""
    if value is None or isinstance(value, Path):
        return value
    if isinstance(value, str):
        return Path(value)
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a file's name or a list of labels, got {value!r}")  # noqa: TRY004 (pydantic's way)
    for index, label in enumerate(value):
        if isinstance(label, bool) or not isinstance(label, str | int | float):
            raise ValueError(f"label {index} must be text, in quotes if need be, got {label!r}")  # noqa: TRY004 (as above)
    return tuple(str(label) for label in value)


Count = Annotated[int, BeforeValidator(_no_boolean), Field(gt=0)]
Quantity = Annotated[int, BeforeValidator(quantity), Field(gt=0)]
Side = Annotated[int, BeforeValidator(_no_boolean), Field(gt=0, le=16384)]
Number = Annotated[float, BeforeValidator(_no_boolean)]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Format = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]


class Section(BaseModel):
    """Any part of the file: frozen, and strict about its keys.  A section left empty is one of defaults."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, coerce_numbers_to_str=True
    )

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, value: Any) -> Any:
        return {} if value is None else value


class Size(Section):
    """An exact size in pixels."""

    height: Side
    width: Side


class Resize(Section):
    """Either `shorter_side` (the other follows) or both `height` and `width`."""

    shorter_side: Side | None = None
    height: Side | None = None
    width: Side | None = None
    interpolation: Interpolation = "bilinear"

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        exact = self.height is not None and self.width is not None
        if exact == (self.shorter_side is not None) or (self.height is None) != (self.width is None):
            raise ValueError("give either shorter_side, or both height and width")
        return self


class Limits(Section):
    """What one picture may cost, checked on its header before it is decoded."""

    bytes: Quantity = 10 * 2**20
    pixels: Annotated[Quantity, Field(le=MOST_PIXELS)] = 50_000_000
    formats: Annotated[tuple[Format, ...], BeforeValidator(_one_or_more), Field(min_length=1)] = (
        "JPEG",
        "PNG",
        "WEBP",
        "GIF",
        "BMP",
        "TIFF",
    )


class ImageSection(Section):
    """How a picture becomes a tensor, in this order: decode, orient, mode, resize, crop, normalise."""

    field: Annotated[tuple[str, ...], BeforeValidator(_one_or_more), Field(min_length=1)] = (
        "image_bytes.b64",
        "image.b64",
        "b64",
        "data",
    )
    mode: Literal["RGB", "L"] = "RGB"
    background: tuple[Annotated[int, Field(ge=0, le=255)], ...] = Field((255, 255, 255), min_length=3, max_length=3)
    resize: Resize | None = None
    center_crop: Annotated[Size | None, BeforeValidator(_square)] = None
    mean: tuple[Number, ...] = ()
    std: tuple[Number, ...] = ()
    limits: Limits = Limits()

    @property
    def channels(self) -> int:
        return 3 if self.mode == "RGB" else 1

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values and len(values) != self.channels:
                raise ValueError(f"{name} needs {self.channels} numbers for mode {self.mode}, got {len(values)}")
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std must be greater than 0, got {list(self.std)}")
        if self.resize and self.center_crop and not _may_fit(self.center_crop, self.resize):
            left = (
                f"a shorter side of {self.resize.shorter_side}"
                if self.resize.shorter_side
                else f"{self.resize.width}x{self.resize.height}"
            )
            raise ValueError(
                f"center_crop is {self.center_crop.width}x{self.center_crop.height} pixels, "
                f"more than resize leaves ({left})"
            )
        return self


def _may_fit(crop: Size, resize: Resize) -> bool:
    """Whether some picture can be cropped after this resize; the longer side depends on the picture."""
    if resize.shorter_side is not None:
        return min(crop.height, crop.width) <= resize.shorter_side
    return crop.height <= (resize.height or 0) and crop.width <= (resize.width or 0)


class PredictorSection(Section):
    """Where the predictor is and how it is called.  What is not given is read from its metadata."""

    host: str = "localhost:8000"
    protocol: Literal["v2"] = "v2"
    hand_off: Literal["auto", "binary", "json"] = "auto"
    model: ModelName | None = None
    version: Annotated[str, Field(pattern=r"^[0-9]{0,18}$")] = ""
    input: str | None = None
    max_batch_size: Annotated[int, BeforeValidator(_no_boolean), Field(ge=0)] | None = None
    use_ssl: bool = False
    timeout_seconds: Annotated[Number, Field(gt=0)] = 60.0
    retries: Annotated[int, BeforeValidator(_no_boolean), Field(ge=0, le=10)] = 2
    connections: Count = 64
    concurrency: Count = 8
    """Calls that one request may have in flight when its instances are split."""


class OutputSection(Section):
    """What becomes of the predictor's outputs."""

    task: Literal["classification", "raw"] = "raw"
    output: str | None = None
    labels: Annotated[Path | tuple[str, ...] | None, BeforeValidator(_file_or_list)] = None
    activation: Literal["none", "softmax"] = "none"
    top_k: Count = 5
    response: Literal["predictions", "outputs"] = "predictions"

    @model_validator(mode="after")
    def _said_and_done(self) -> Self:
        """Nothing that was asked for may be left out in silence."""
        idle = [name for name in ("labels", "activation", "top_k") if name in self.model_fields_set]
        if self.task != "classification" and idle:
            raise ValueError(f"only task: classification uses {', '.join(idle)}, got task: {self.task}")
        if self.task == "classification" and self.response == "outputs":
            raise ValueError("response: outputs gives the outputs as they are; leave out task: classification")
        return self


class TransformerConfig(Section):
    """One model: its name, its predictor, its pictures, its answers."""

    model_name: ModelName = "model"
    transformer: str | None = None
    predictor: PredictorSection = PredictorSection()
    image: ImageSection = ImageSection()
    output: OutputSection = OutputSection()
    max_instances: Count = 256
    server: Mapping[str, Any] = Field(default_factory=dict)
    """Settings of the process, by their flag's name: `server: {http_port: 8080}`."""

    @property
    def predictor_model(self) -> str:
        return self.predictor.model or self.model_name


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> TransformerConfig:
    """Read a file; `overrides` maps dotted keys (`predictor.host`) to values that win over the file's.

    A labels file is read here, relative to the folder of `path`.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or breaks a rule; the message has the line.
    """
    text = _read(path, str(path))
    config = parse_config(text, str(path), overrides)
    labels = config.output.labels
    if isinstance(labels, Path):
        where = f"{path}:{_line(_Loader(text).get_single_node(), ['output', 'labels'])}: output.labels: "
        lines = _read_labels(path.parent / labels, where)
        config = config.model_copy(update={"output": config.output.model_copy(update={"labels": lines})})
    return config


def parse_config(
    text: str, name: str = "transformer.yaml", overrides: Mapping[str, Any] | None = None
) -> TransformerConfig:
    """The configuration out of a YAML text; a labels file stays a path.  See `load_config`."""
    try:
        loader = _Loader(text)
        tree = loader.get_single_node()
        document = loader.construct_document(tree) if tree is not None else {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(f"{where}: no valid YAML: {getattr(error, 'problem', None) or error}") from None
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise ConfigError(f"{name}: the file must hold a mapping of keys, got {type(document).__name__}")
    for dotted, value in (overrides or {}).items():
        _override(document, dotted.split("."), value)
    try:
        return TransformerConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error.errors(), name, tree))) from None


class _Loader(yaml.SafeLoader):
    """YAML as it is meant: of a key given twice, PyYAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in lines:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {key.value!r} is given twice, first on line {lines[key.value]}",
                        problem_mark=key.start_mark,
                    )
                lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _override(document: dict[Any, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        section = document.get(key)
        if section is None:
            section = document[key] = {}
        if not isinstance(section, dict):
            return  # no section at all: the validation that follows says so
        document = section
    document[keys[-1]] = value


def _read(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{where}: cannot be read: {reason}") from None


def _read_labels(path: Path, where: str) -> tuple[str, ...]:
    """One label a line; a line's number is its class, so a gap would shift every label behind it."""
    lines = [line.strip() for line in _read(path, where + str(path)).rstrip().split("\n")]
    if "" in lines:
        empty = "the file is empty" if lines == [""] else f"line {lines.index('') + 1} is empty"
        raise ConfigError(f"{where}{path}: {empty}; there must be one label a line, in the order of the classes")
    return tuple(lines)


# --- messages ---------------------------------------------------------------------------------------------------------


def _explain(findings: Iterable[Any], name: str, tree: yaml.Node | None) -> list[str]:
    """Pydantic's findings as `file:line: key: what is wrong, got what`."""
    lines = []
    for item in findings:
        keys, section = _place(item["loc"])
        dotted = ".".join(str(key) for key in keys)
        where = f"{name}:{_line(tree, keys)}: {dotted}: " if dotted else f"{name}: "
        if item["type"] == "extra_forbidden":
            known = list(section.model_fields)
            near = difflib.get_close_matches(str(keys[-1]).replace("-", "_"), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(sorted(known))}"
            lines.append(f"{where}unknown key; {hint}")
        else:
            given = "" if item["type"] == "value_error" else f", got {item['input']!r}"
            lines.append(f"{where}{item['msg'].removeprefix('Value error, ')}{given}")
    return lines


def _place(location: Iterable[str | int]) -> tuple[list[str | int], type[Section]]:
    """A finding's keys as they stand in the file, and the section that the last of them belongs to.

    Below the last section pydantic mixes names of its own (of a union's members) into the location.
    """
    keys: list[str | int] = []
    section: type[Section] = TransformerConfig
    inner: type[Section] | None = TransformerConfig
    for key in location:
        if inner is not None:
            keys.append(key)
            field = inner.model_fields.get(str(key))
            section, inner = inner, _section_in(field.annotation) if field else None
        elif isinstance(key, int):
            keys.append(key)
    return keys, section


def _section_in(annotation: Any) -> type[Section] | None:
    """The Section class inside an annotation such as `Resize | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for member in getattr(annotation, "__args__", ()):
        if (found := _section_in(member)) is not None:
            return found
    return None


def _line(node: yaml.Node | None, keys: Iterable[str | int]) -> int:
    """The line of the deepest key that the file really has, counted from 1."""
    line = 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(key)), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
    return line
