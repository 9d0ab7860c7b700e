"""The transformer's YAML file as checked, frozen values.

One file is one model.  Unknown keys are refused with the nearest known one; every message carries
the file and the line.  Knows no picture and no predictor: whether the values fit the predictor is
checked against its metadata at start-up (`contract`).
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?b?|b?)\s*", re.IGNORECASE)


class ConfigError(ValueError):
    """The configuration breaks a rule; the message is for the person who wrote the file."""


def quantity(value: Any) -> Any:
    """`10MiB`, `50M`, `2e6` or a number as an integer; anything else is left to pydantic to refuse."""
    if isinstance(value, str) and (match := _QUANTITY.fullmatch(value)):
        unit = match[2].lower()
        factor = _UNITS.get(unit) or _UNITS.get(unit.removesuffix("b"))
        if factor is not None:
            return int(float(match[1]) * factor)
    return value


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _square(value: Any) -> Any:
    return {"height": value, "width": value} if isinstance(value, int) else value


Quantity = Annotated[int, BeforeValidator(quantity), Field(gt=0)]
Side = Annotated[int, Field(gt=0, le=16384)]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Format = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]


class Section(BaseModel):
    """Any part of the file: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


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
    pixels: Quantity = 50_000_000
    formats: tuple[Format, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


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
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
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
        if self.resize and self.center_crop:
            smallest = self.resize.shorter_side or min(self.resize.height or 0, self.resize.width or 0)
            if max(self.center_crop.height, self.center_crop.width) > smallest:
                raise ValueError(
                    f"center_crop is larger than what resize leaves ({smallest} pixels on the shorter side)"
                )
        return self


class PredictorSection(Section):
    """Where the predictor is and how it is called.  What is not given is read from its metadata."""

    host: str = "localhost:8000"
    protocol: Literal["v2"] = "v2"
    hand_off: Literal["auto", "binary", "json"] = "auto"
    model: str | None = None
    version: str = ""
    input: str | None = None
    max_batch_size: Annotated[int, Field(ge=0)] | None = None
    use_ssl: bool = False
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    connections: Annotated[int, Field(gt=0)] = 64
    concurrency: Annotated[int, Field(gt=0)] = 8


class OutputSection(Section):
    """What becomes of the predictor's outputs."""

    task: Literal["classification", "raw"] = "raw"
    output: str | None = None
    labels: Path | tuple[str, ...] | None = None
    activation: Literal["none", "softmax"] = "none"
    top_k: Annotated[int, Field(gt=0)] = 5
    response: Literal["predictions", "outputs"] = "predictions"


class TransformerConfig(Section):
    """One model: its name, its predictor, its pictures, its answers."""

    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")] = "model"
    transformer: str | None = None
    predictor: PredictorSection = PredictorSection()
    image: ImageSection = ImageSection()
    output: OutputSection = OutputSection()
    max_instances: Annotated[int, Field(gt=0)] = 256
    server: Mapping[str, Any] = Field(default_factory=dict)
    """Settings of the process, by their flag's name: `server: {http_port: 8080}`."""

    @property
    def predictor_model(self) -> str:
        return self.predictor.model or self.model_name


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> TransformerConfig:
    """Read a file; `overrides` maps dotted keys (`predictor.host`) to values that win over the file's.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or breaks a rule; the message has the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror if isinstance(error, OSError) else error}"
        ) from None
    config = parse_config(text, str(path), overrides)
    labels = config.output.labels
    if isinstance(labels, Path):
        lines = _read_labels(path.parent / labels)
        config = config.model_copy(update={"output": config.output.model_copy(update={"labels": lines})})
    return config


def parse_config(
    text: str, name: str = "transformer.yaml", overrides: Mapping[str, Any] | None = None
) -> TransformerConfig:
    """The configuration out of a YAML text; see `load_config`."""
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(f"{where}: no valid YAML: {getattr(error, 'problem', None) or error}") from None
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise ConfigError(f"{name}: the file must hold a mapping of keys, got {type(document).__name__}")
    for dotted, value in (overrides or {}).items():
        *sections, key = dotted.split(".")
        target = document
        for section in sections:
            target = target.setdefault(section, {})
        target[key] = value
    try:
        return TransformerConfig(**document)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item, name, tree) for item in error.errors())) from None


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"output.labels: {path} cannot be read: {reason}") from None
    return tuple(line.strip() for line in lines if line.strip())


def _explain(item: Any, name: str, tree: yaml.Node | None) -> str:
    """One of pydantic's findings as `file:line: key: what is wrong, got what`."""
    keys = [key for key in item["loc"] if not isinstance(key, str) or key.isidentifier()]
    dotted = ".".join(str(key) for key in keys)
    where = f"{name}:{_line(tree, keys)}: {dotted}: " if dotted else f"{name}: "
    if item["type"] == "extra_forbidden":
        known = _known_keys(keys[:-1])
        near = difflib.get_close_matches(str(keys[-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(sorted(known))}"
        return f"{where}unknown key; {hint}"
    message = item["msg"].removeprefix("Value error, ")
    given = "" if item["type"] == "value_error" else f", got {item['input']!r}"
    return f"{where}{message}{given}"


def _known_keys(path: list[Any]) -> list[str]:
    section: Any = TransformerConfig
    for key in path:
        field = section.model_fields.get(key) if isinstance(section, type) and issubclass(section, BaseModel) else None
        section = _section_in(field.annotation) if field else None
    return list(section.model_fields) if section is not None else []


def _section_in(annotation: Any) -> type[Section] | None:
    """The Section class inside an annotation such as `Resize | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for member in getattr(annotation, "__args__", ()):
        if (found := _section_in(member)) is not None:
            return found
    return None


def _line(node: yaml.Node | None, keys: list[Any]) -> int:
    """The line of the deepest key that the file really has, counted from 1."""
    line = 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == key), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
    return line
