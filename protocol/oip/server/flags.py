"""A command line from a settings class: one declaration gives the flags, the environment and the help.

Knows click and pydantic; knows no setting by name.  Rules (all of them KServe's or Triton's users rely on):

- precedence: flag, then `TANDEM_<NAME>` in the environment, then the file layer, then the default;
- `-` and `_` are the same letter in a flag;
- a boolean takes an optional value: `--x`, `--x true`, `--x=false`;
- a flag that is known but has no effect here is accepted with a warning that says why; any other
  unknown flag is refused, with the nearest known one as a suggestion.
"""

import logging
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings", bound=BaseModel)
FALSE_WORDS = ("false", "0", "no", "off")
BOOLEAN_WORDS = ("true", "1", "yes", "on", *FALSE_WORDS)


@dataclass(frozen=True, slots=True)
class NoEffect:
    """A flag of KServe's or Triton's that is accepted and does nothing here; `why` is printed."""

    name: str
    why: str
    boolean: bool = False
    harmless: tuple[str, ...] = ()
    """Values that ask for what happens anyway: no warning for them."""


class _Command(click.Command):
    """A click command whose boolean options take an optional value."""

    booleans: frozenset[str] = frozenset()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, join_boolean_values(args, self.booleans))


def join_boolean_values(args: Sequence[str], booleans: frozenset[str]) -> list[str]:
    """`--x` and `--x true` as `--x=true`, for the flags in `booleans` (spelt with `-`)."""
    joined: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*joined, word, *rest]
        if word.replace("_", "-") in booleans:
            value = rest.pop(0) if rest and rest[0].lower() in BOOLEAN_WORDS else "true"
            word = f"{word}={value}"
        joined.append(word)
    return joined


def flag_of(name: str) -> str:
    """`http_port` -> `--http-port`."""
    return "--" + name.replace("_", "-")


def settings_command(
    name: str,
    settings: type[Settings],
    run: Callable[[Settings, tuple[str, ...]], None],
    *,
    help: str,
    argument: str | None = None,
    no_effect: Sequence[NoEffect] = (),
    file_layer: Callable[[tuple[str, ...], Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> click.Command:
    """A command that fills `settings` and calls `run(settings, arguments)`.

    Args:
        argument: the name of the positional arguments (any number), or None for none.
        no_effect: flags to accept and warn about.
        file_layer: given the arguments and what flags and environment say, returns what the files say.

    A field's flag is its name; `json_schema_extra={"aliases": [...]}` adds further spellings.
    """
    options: list[click.Parameter] = []
    booleans: set[str] = set()
    for field_name, field in settings.model_fields.items():
        spellings = [flag_of(field_name), *_aliases(field)]
        if _is_boolean(field.annotation):
            booleans.update(spellings)
        options.append(
            click.Option(
                [*spellings, field_name],
                envvar=f"TANDEM_{field_name.upper()}",
                multiple=_is_list(field.annotation),
                default=None,
                metavar=_metavar(field.annotation),
                help=f"{field.description or ''}  [{_default_text(field)}]",
            )
        )
    for flag in no_effect:
        if flag.boolean:
            booleans.add(flag_of(flag.name))
        options.append(
            click.Option([flag_of(flag.name), f"no_effect_{flag.name}"], hidden=True, default=None, multiple=True)
        )
    if argument is not None:
        options.append(click.Argument([argument], nargs=-1, metavar=f"[{argument.upper()}]..."))

    def call(**values: Any) -> None:
        arguments = tuple(values.pop(argument)) if argument is not None else ()
        for flag in no_effect:
            for value in values.pop(f"no_effect_{flag.name}", None) or ():
                if value.lower() not in flag.harmless:
                    logger.warning("%s %s has no effect: %s", flag_of(flag.name), value, flag.why)
        given = {key: value for key, value in values.items() if value not in (None, ())}
        layers: dict[str, Any] = dict(file_layer(arguments, given)) if file_layer else {}
        run(validated(settings, {**layers, **given}), arguments)

    command = _Command(
        name,
        params=options,
        callback=call,
        help=help,
        context_settings={
            "token_normalize_func": lambda token: token.replace("_", "-"),
            "help_option_names": ["-h", "--help"],
            "max_content_width": 110,
        },
    )
    command.booleans = frozenset(booleans)
    return command


def validated(settings: type[Settings], values: Mapping[str, Any]) -> Settings:
    """The settings, or a usage error that names each flag, what it was given and what is right."""
    try:
        return settings(**values)
    except ValidationError as error:
        raise click.UsageError("; ".join(map(_complaint, error.errors()))) from None


def _complaint(item: ErrorDetails) -> str:
    if not item["loc"]:
        return f"settings: {item['msg']}"
    flag = flag_of(str(item["loc"][0]))
    # What a missing value was "given" is everything else.
    return f"{flag}: {item['msg']}" + ("" if item["type"] == "missing" else f", got {item['input']!r}")


def _aliases(field: FieldInfo) -> list[str]:
    extra = field.json_schema_extra
    return list(extra.get("aliases", [])) if isinstance(extra, dict) else []  # type: ignore[arg-type]


def _plain(annotation: Any) -> Any:
    """The annotation without `| None`."""
    if get_origin(annotation) in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        return members[0] if len(members) == 1 else annotation
    return annotation


def _is_boolean(annotation: Any) -> bool:
    return _plain(annotation) is bool


def _is_list(annotation: Any) -> bool:
    return get_origin(_plain(annotation)) in (list, tuple)


def _metavar(annotation: Any) -> str:
    plain = _plain(annotation)
    if get_origin(plain) is Literal:
        return "|".join(str(value) for value in get_args(plain))
    if _is_list(annotation):
        return "VALUE"
    return {bool: "[true|false]", int: "N", float: "X"}.get(plain, "VALUE")


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if default in (None, (), []):
        return "not set"
    return f"default: {str(default).lower() if isinstance(default, bool) else default}"
