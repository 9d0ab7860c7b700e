"""A command line made from a settings class: where values come from, and what is refused how."""

import itertools
import logging
import re
from pathlib import Path
from typing import Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel, ConfigDict, Field, model_validator

from oip.server.flags import NoEffect, flag_of, join_boolean_values, settings_command, validated
from oip.server.settings import ServerSettings


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    port_number: int = Field(80, ge=0, le=65535, description="The port.", json_schema_extra={"aliases": ["--prt"]})
    wait_seconds: float | None = Field(None, gt=0)
    switch: bool = False
    other_switch: bool | None = None
    kind: Literal["a", "b"] = "a"
    names: list[str] = Field(default_factory=list)
    folder: Path | None = None
    text: str = "plain"


class Outcome:
    """What `run` was called with, if it was, and how the process would have ended."""

    settings = None
    arguments = None
    status = None
    output = ""


@pytest.fixture
def call(monkeypatch):
    """Runs the command with these words, environment and file layer."""

    def call(*words, environment=(), file=None, no_effect=(), settings=Settings, argument="config"):
        outcome = Outcome()

        def run(values, arguments):
            outcome.settings, outcome.arguments = values, arguments

        def file_layer(arguments, given):
            outcome.given = given
            return file

        command = settings_command(
            "test",
            settings,
            run,
            help="Help.",
            argument=argument,
            no_effect=no_effect,
            file_layer=None if file is None else file_layer,
        )
        result = CliRunner().invoke(command, list(words), env=dict(environment))
        outcome.status, outcome.output = result.exit_code, result.output
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return outcome

    return call


PLACES = {"flag": 3, "environment": 2, "file": 1}


@pytest.mark.parametrize("places", [set(c) for n in range(4) for c in itertools.combinations(PLACES, n)], ids=str)
def test_flag_over_environment_over_file_over_default(call, places):
    outcome = call(
        *(["--port-number", "3"] if "flag" in places else []),
        environment={"TANDEM_PORT_NUMBER": "2"} if "environment" in places else {},
        file={"port_number": 1} if "file" in places else {},
    )
    assert outcome.settings.port_number == max((PLACES[place] for place in places), default=80)


def test_a_false_or_zero_from_above_wins_over_the_file(call):
    outcome = call("--switch=false", "--port-number=0", file={"switch": True, "port_number": 1, "text": "file"})
    assert (outcome.settings.switch, outcome.settings.port_number, outcome.settings.text) == (False, 0, "file")
    assert outcome.given == {"switch": "false", "port_number": "0"}


def test_an_empty_variable_is_not_set(call):
    assert call(environment={"TANDEM_PORT_NUMBER": ""}).settings.port_number == 80


@pytest.mark.parametrize(
    "words",
    [
        ["--port-number", "7"],
        ["--port_number", "7"],
        ["--port-number=7"],
        ["--port_number=7"],
        ["--prt", "7"],
        ["--prt=7"],
        ["--port-number", "1", "--port_number", "7"],
    ],
)
def test_spellings_of_a_flag(call, words):
    assert call(*words).settings.port_number == 7


def test_values_keep_their_underscores(call):
    assert call("--text", "a_b-c").settings.text == "a_b-c"


TRUE_WORDS = ("true", "True", "TRUE", "1", "yes", "on")
FALSE_WORDS = ("false", "False", "0", "no", "off")


@pytest.mark.parametrize(
    ("words", "value", "arguments"),
    [
        ([], False, ()),
        (["--switch"], True, ()),
        *((["--switch", word], True, ()) for word in TRUE_WORDS),
        *((["--switch", word], False, ()) for word in FALSE_WORDS),
        *(([f"--switch={word}"], True, ()) for word in TRUE_WORDS),
        *(([f"--switch={word}"], False, ()) for word in FALSE_WORDS),
        (["--switch", "--text", "x"], True, ()),
        (["--switch", "config.yaml"], True, ("config.yaml",)),
        (["--switch", "false", "true"], False, ("true",)),
        (["--switch", "--", "false"], True, ("false",)),
    ],
)
def test_forms_of_a_boolean(call, words, value, arguments):
    outcome = call(*words)
    assert outcome.settings.switch is value
    assert outcome.arguments == arguments


@pytest.mark.parametrize(
    ("words", "value"), [(["--other_switch"], True), (["--other-switch", "no"], False), ([], None)]
)
def test_a_boolean_that_may_be_unset_and_either_spelling(call, words, value):
    assert call(*words).settings.other_switch is value


@pytest.mark.parametrize(
    ("given", "joined"),
    [
        ("--x", "--x=true"),
        ("--x true", "--x=true"),
        ("--x off a", "--x=off a"),
        ("--x a", "--x=true a"),
        ("--x=false true", "--x=false true"),
        ("--y true", "--y true"),
        ("--a_b 1 --x", "--a_b=1 --x=true"),
        ("-- --x true", "-- --x true"),
        ("--x -- true", "--x=true -- true"),
    ],
)
def test_join_boolean_values(given, joined):
    assert join_boolean_values(given.split(), frozenset({"--x", "--a-b"})) == joined.split()


def test_a_list_is_given_by_repeating_its_flag(call):
    assert call("--names", "a", "--names=b").settings.names == ["a", "b"]
    assert call(environment={"TANDEM_NAMES": "a b"}).settings.names == ["a", "b"]
    assert call("--names", "a", file={"names": ["b"]}).settings.names == ["a"]
    assert call(file={"names": ["b"]}).settings.names == ["b"]


def test_arguments(call):
    outcome = call("one", "--text", "x", "two")
    assert outcome.arguments == ("one", "two")
    assert call("one", argument=None).status == 2


@pytest.mark.parametrize(
    ("flag", "suggestion"),
    [
        ("--prot-number", "--port-number"),
        ("--port_numbr", "--port-number"),
        ("--swich=true", "--switch"),
        ("--no-effct", "--no-effect"),
    ],
)
def test_an_unknown_flag_is_refused_with_a_suggestion(call, flag, suggestion):
    outcome = call(flag, "1", no_effect=[NoEffect("no_effect", "why")])
    assert (outcome.status, outcome.settings) == (2, None)
    assert suggestion in outcome.output


def test_an_unknown_flag_like_no_other_is_refused(call):
    outcome = call("--zzzzzz")
    assert (outcome.status, outcome.settings) == (2, None)
    assert "--zzzzzz" in outcome.output


WORKERS = NoEffect("workers", "one process serves", harmless=("1",))
LATENCY = NoEffect("enable_latency", "it is always on", boolean=True, harmless=("true",))


@pytest.mark.parametrize(
    ("words", "warnings"),
    [
        (["--workers", "1"], []),
        (["--workers", "2"], ["--workers 2 has no effect: one process serves"]),
        (["--workers=1", "--workers=4"], ["--workers 4 has no effect: one process serves"]),
        (["--enable_latency"], []),
        (["--enable-latency", "True"], []),
        (["--enable_latency=false"], ["--enable-latency false has no effect: it is always on"]),
        (["--enable_latency", "false", "x"], ["--enable-latency false has no effect: it is always on"]),
    ],
)
def test_a_flag_without_effect_warns_unless_it_asks_for_what_happens_anyway(call, caplog, words, warnings):
    with caplog.at_level(logging.WARNING):
        outcome = call(*words, no_effect=[WORKERS, LATENCY])
    assert outcome.status == 0
    assert outcome.settings == Settings()
    assert [record.getMessage() for record in caplog.records] == warnings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port-number", "x"], r"--port-number: .* integer.*, got 'x'"),
        (["--port-number", "70000"], r"--port-number: .* less than or equal to 65535, got '70000'"),
        (["--prt", "-1"], r"--port-number: .* greater than or equal to 0, got '-1'"),
        (["--wait-seconds", "0"], r"--wait-seconds: .* greater than 0, got '0'"),
        (["--kind", "c"], r"--kind: .*'a' or 'b', got 'c'"),
        (["--switch=maybe"], r"--switch: .* boolean.*, got 'maybe'"),
        (["--port-number"], r"--port-number.* requires an argument"),
    ],
)
def test_a_bad_value_is_refused_by_its_flag(call, words, message):
    outcome = call(*words)
    assert (outcome.status, outcome.settings) == (2, None)
    assert re.search(message, " ".join(outcome.output.split()))


def test_every_bad_value_is_named_at_once(call):
    outcome = call("--port-number", "x", "--kind", "c")
    assert "--port-number: " in outcome.output
    assert "--kind: " in outcome.output


def test_an_unknown_key_of_a_file_is_refused(call):
    outcome = call(file={"port_nmber": 1})
    assert outcome.status == 2
    assert "--port-nmber: Extra inputs are not permitted" in outcome.output


class Strict(BaseModel):
    needed: int
    other: str = "secret-value"

    @model_validator(mode="after")
    def fits(self):
        if self.needed == 13:
            raise ValueError("needed and other do not fit")
        return self


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"other": "secret-value"}, "--needed: Field required"),
        ({"needed": 13}, "settings: Value error, needed and other do not fit"),
    ],
)
def test_messages_that_concern_no_single_value_show_none(values, message):
    with pytest.raises(click.UsageError) as caught:
        validated(Strict, values)
    assert caught.value.message == message


def test_a_bad_element_of_a_list_is_named_by_its_flag():
    class Numbers(BaseModel):
        numbers: list[int]

    with pytest.raises(click.UsageError, match=r"--numbers: .*integer.*, got 'x'"):
        validated(Numbers, {"numbers": ["1", "x"]})


def test_help_shows_each_flag_with_its_default(call):
    outcome = call("--help", no_effect=[WORKERS])
    for text in ("--port-number, --prt N", "default: 80", "--switch [true|false]", "default: false", "--kind a|b"):
        assert text in " ".join(outcome.output.split())
    assert "not set" in outcome.output
    assert "workers" not in outcome.output


@pytest.mark.parametrize("name", list(ServerSettings.model_fields))
def test_every_server_setting_is_a_flag_with_a_description_that_accepts_its_default(call, name):
    field = ServerSettings.model_fields[name]
    assert field.description
    if field.default is None:
        return
    outcome = call(flag_of(name), str(field.default), settings=ServerSettings, argument=None)
    assert outcome.settings == ServerSettings(), outcome.output


def test_tritons_spellings_of_server_settings(call):
    outcome = call("--http-max-input-size=5", "--exit_timeout_secs", "6", settings=ServerSettings, argument=None)
    assert (outcome.settings.max_body_bytes, outcome.settings.exit_timeout_seconds) == (5, 6)
