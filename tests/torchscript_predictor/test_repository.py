"""The model repository on disk."""

import logging

import pytest

from torchscript_predictor.repository import ModelRepository, RepositoryError


def make(root, *folders, files=()):
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"x")


def only(root, name):
    [folder] = ModelRepository([root]).models()[name]
    return folder


def test_models_are_folders_with_a_name(tmp_path, caplog):
    make(tmp_path, "b", "a-1.x_Y", ".hidden", "with space", "x" * 129, files=["file"])
    assert list(ModelRepository([tmp_path]).models()) == ["a-1.x_Y", "b"]
    assert "'with space' is ignored" in caplog.text


def test_a_model_in_two_repositories_has_two_folders(tmp_path):
    make(tmp_path, "one/a", "two/a", "two/b")
    models = ModelRepository([tmp_path / "one", tmp_path / "two"]).models()
    assert {name: len(folders) for name, folders in models.items()} == {"a": 2, "b": 1}


def test_versions_are_numbers_from_1_without_leading_zeros(tmp_path, caplog):
    make(tmp_path, *(f"m/{name}" for name in ("10", "2", "0", "01", "-1", "1a", "warmup", "٣")), files=["m/7"])
    with caplog.at_level(logging.WARNING):
        assert only(tmp_path, "m").versions() == [2, 10]
    assert {record.getMessage().split()[0] for record in caplog.records} == {"m/0", "m/01", "m/٣"}


@pytest.mark.parametrize(
    ("folder", "message"),
    [("absent", "does not exist"), ("file", "is a file")],
)
def test_a_repository_that_is_none(tmp_path, folder, message):
    make(tmp_path, files=["file"])
    with pytest.raises(RepositoryError, match=message):
        ModelRepository([tmp_path / folder])


def test_config_text_is_utf_8(tmp_path):
    make(tmp_path, "m")
    (tmp_path / "m/config.pbtxt").write_bytes("\ufeffname: 'é'".encode())
    assert only(tmp_path, "m").config_text() == "name: 'é'"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\xff", "m/config.pbtxt is not UTF-8 text: byte 1 is 0xff"),
        (b"#" * (1 << 20) + b"#", "m/config.pbtxt is longer than 1048576 bytes"),
    ],
)
def test_config_text_that_cannot_be_read(tmp_path, content, message):
    make(tmp_path, "m")
    (tmp_path / "m/config.pbtxt").write_bytes(content)
    with pytest.raises(RepositoryError) as caught:
        only(tmp_path, "m").config_text()
    assert str(caught.value).startswith(message)


def test_model_file(tmp_path):
    make(tmp_path, files=["m/1/model.pt"])
    assert only(tmp_path, "m").model_file(1, "model.pt").read_bytes() == b"x"


def test_a_missing_file_is_named_by_model_and_version(tmp_path):
    make(tmp_path, "m/1/model.pt")  # a folder
    with pytest.raises(RepositoryError, match=r"^m/1/model\.pt does not exist"):
        only(tmp_path, "m").model_file(1, "model.pt")
    with pytest.raises(RepositoryError, match=r"^m/warmup/x does not exist"):
        only(tmp_path, "m").warmup_file("x")


def test_links_may_not_lead_out_of_the_repository(tmp_path):
    make(tmp_path, "repository/m", files=["outside/1/model.pt", "outside/config.pbtxt", "repository/store/model.pt"])
    model = tmp_path / "repository/m"
    (model / "1").symlink_to(tmp_path / "outside/1")
    (model / "2").symlink_to(tmp_path / "repository/store")
    (model / "config.pbtxt").symlink_to(tmp_path / "outside/config.pbtxt")
    folder = only(tmp_path / "repository", "m")
    with pytest.raises(RepositoryError, match=r"^m/1/model\.pt leads out of the model repository"):
        folder.model_file(1, "model.pt")
    with pytest.raises(RepositoryError, match=r"^m/config\.pbtxt leads out"):
        folder.config_text()
    assert folder.model_file(2, "model.pt").read_bytes() == b"x"
