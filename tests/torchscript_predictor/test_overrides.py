"""What a load brings along: configurations in JSON, and files that stay in their folder."""

import json

import pytest

from oip.errors import InvalidArgument
from torchscript_predictor.overrides import config_from_json, make_override

CONFIG = json.dumps({"max_batch_size": 4, "version_policy": {"latest": {"num_versions": 1}}})


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def files_under(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_brought():
    assert make_override("m", None, {}) is None


def test_a_configuration_alone(temporary):
    override = make_override("m", CONFIG, {})
    assert "max_batch_size: 4" in override.config
    assert override.folder is None
    assert override.applied("m", None) is None
    assert [*temporary.iterdir()] == []


def test_files_are_in_a_private_folder_of_their_own(temporary):
    override = make_override("m", CONFIG, {"1/model.pt": b"x", "labels.txt": b"y", "warmup/a/b": b"z"})
    folder = override.applied("m", None)
    assert files_under(folder.path) == {"1/model.pt": b"x", "labels.txt": b"y", "warmup/a/b": b"z"}
    assert folder.versions() == [1]
    assert folder.config_text() == override.config
    assert folder.schema() is None
    assert override.folder.stat().st_mode & 0o777 == 0o700
    override.discard()
    assert [*temporary.iterdir()] == []
    assert make_override("m", CONFIG, {}).number != override.number


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "/etc/passwd", "..", "../x", "1/../../x", "1/..", "1//model.pt", "1/", "./x", "1/\x00", "1/a\\b"),
        *("a/" * 8 + "b", "x" * 256, "config.pbtxt"),
    ],
)
def test_a_file_that_would_leave_the_folder_is_refused(temporary, path):
    with pytest.raises(InvalidArgument, match=r"^load parameter 'file:"):
        make_override("m", CONFIG, {"1/model.pt": b"x", path: b"x"})
    assert [*temporary.iterdir()] == []


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "../m", "m\n", "m" * 129, "ü"])
def test_a_name_that_is_none_is_refused(temporary, name):
    with pytest.raises(InvalidArgument, match="is no model name"):
        make_override(name, CONFIG, {"1/model.pt": b"x"})
    assert [*temporary.iterdir()] == []


@pytest.mark.parametrize(
    ("config", "files", "message"),
    [
        (None, {"1/model.pt": b""}, "'config' must be specified"),
        ("", {}, "is no model configuration"),
        ("nonsense", {}, "is no model configuration"),
        ("[]", {}, "is no model configuration"),
        ('{"colour": 3}', {}, "colour"),
        ('{"max_batch_size": "many"}', {}, "max_batch_size"),
        ("[" * 5000, {}, "is no model configuration"),
        ("{}", {f"1/{number}": b"" for number in range(257)}, "at most 256 files"),
        ("{}", {"1": b"", "1/model.pt": b""}, "cannot be written"),
    ],
)
def test_what_is_refused(temporary, config, files, message):
    with pytest.raises(InvalidArgument, match=message) as caught:
        make_override("m", config, files)
    assert str(temporary) not in caught.value.message
    assert [*temporary.iterdir()] == []


def test_what_config_shows_can_be_given_back():
    text = config_from_json('{"name": "m", "dynamic_batching": {"max_queue_delay_microseconds": 500}}')
    assert text == 'name: "m"\ndynamic_batching {\n  max_queue_delay_microseconds: 500\n}\n'
