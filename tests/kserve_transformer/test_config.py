"""The YAML file: every key, every refusal with its place, quantities, overrides, labels."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kserve_transformer.config import (
    MOST_PIXELS,
    ConfigError,
    Section,
    TransformerConfig,
    load_config,
    parse_config,
    quantity,
)
from oip.errors import InvalidArgument

WHOLE = """\
model_name: efficientnet_lite0
transformer: module:Class
predictor:
  host: "localhost:8000"
  protocol: v2
  hand_off: auto
  model: lite0
  version: 3
  input: x
  max_batch_size: 16
  use_ssl: true
  timeout_seconds: 2.5
  retries: 0
  connections: 3
  concurrency: 2
image:
  field: [image_bytes.b64, data]
  mode: RGB
  background: [0, 1, 2]
  resize: {shorter_side: 256, interpolation: bicubic}
  center_crop: 224
  mean: [0.498, 0.498, 0.498]
  std: [0.502, 0.502, 0.502]
  limits: {bytes: 10MiB, pixels: 50M, formats: [JPEG, PNG]}
output:
  task: classification
  output: probabilities
  labels: [cat, dog]
  activation: softmax
  top_k: 2
  response: predictions
max_instances: 9
server: {http_port: 8080}
"""


def refused(text: str, name: str = "f.yaml") -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, name)
    return str(caught.value)


def test_every_key_is_read() -> None:
    config = parse_config(WHOLE)
    assert config.model_dump() == {
        "model_name": "efficientnet_lite0",
        "transformer": "module:Class",
        "predictor": {
            "host": "localhost:8000",
            "protocol": "v2",
            "hand_off": "auto",
            "model": "lite0",
            "version": "3",
            "input": "x",
            "max_batch_size": 16,
            "use_ssl": True,
            "timeout_seconds": 2.5,
            "retries": 0,
            "connections": 3,
            "concurrency": 2,
        },
        "image": {
            "field": ("image_bytes.b64", "data"),
            "mode": "RGB",
            "background": (0, 1, 2),
            "resize": {"shorter_side": 256, "height": None, "width": None, "interpolation": "bicubic"},
            "center_crop": {"height": 224, "width": 224},
            "mean": (0.498, 0.498, 0.498),
            "std": (0.502, 0.502, 0.502),
            "limits": {"bytes": 10 * 2**20, "pixels": 50_000_000, "formats": ("JPEG", "PNG")},
        },
        "output": {
            "task": "classification",
            "output": "probabilities",
            "labels": ("cat", "dog"),
            "activation": "softmax",
            "top_k": 2,
            "response": "predictions",
        },
        "max_instances": 9,
        "server": {"http_port": 8080},
    }


def test_the_whole_example_names_every_key() -> None:
    """So that a new key cannot be forgotten in `test_every_key_is_read`."""

    def keys(section: type[Section]) -> set[str]:
        found = set(section.model_fields)
        for field in section.model_fields.values():
            for member in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if isinstance(member, type) and issubclass(member, Section):
                    found |= keys(member)
        return found

    missing = {key for key in keys(TransformerConfig) if f"{key}:" not in WHOLE}
    assert missing == {"height", "width"}  # the other form of resize


def test_an_empty_file_and_empty_sections_are_all_defaults() -> None:
    assert parse_config("") == TransformerConfig()
    assert parse_config("predictor:\nimage:\n  limits:\noutput:\nserver: {}\n") == TransformerConfig()


def test_the_predictors_model_has_our_name_unless_given() -> None:
    assert parse_config("model_name: a").predictor_model == "a"
    assert parse_config("model_name: a\npredictor: {model: b}").predictor_model == "b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image:\n  mode: RGB\n  cropp: 3", "f.yaml:3: image.cropp: unknown key; known keys are background, "),
        ("image:\n  center-crop: 224", "f.yaml:2: image.center-crop: unknown key; did you mean 'center_crop'?"),
        ("modelname: x", "f.yaml:1: modelname: unknown key; did you mean 'model_name'?"),
        ("\n\nimage:\n  limits:\n    byte: 1", "f.yaml:5: image.limits.byte: unknown key; did you mean 'bytes'?"),
        ("output:\n  lables: a", "f.yaml:2: output.lables: unknown key; did you mean 'labels'?"),
        ("image:\n  resize: {zzz: 1, shorter_side: 2}", "image.resize.zzz: unknown key; known keys are height,"),
        ("model_name: a b", "f.yaml:1: model_name: "),
        ("predictor:\n  protocol: v1", "f.yaml:2: predictor.protocol: Input should be 'v2', got 'v1'"),
        ("predictor:\n  model: ../x", "f.yaml:2: predictor.model: "),
        ("predictor: {version: newest}", "f.yaml:1: predictor.version: "),
        ("predictor: {timeout_seconds: .inf}", "predictor.timeout_seconds: Input should be a finite number"),
        ("predictor: {retries: yes}", "predictor.retries: must be a number, got true"),
        ("predictor: localhost", "f.yaml:1: predictor: Input should be a valid dictionary"),
        ("image:\n  mean: [1, 2]", "f.yaml:1: image: mean needs 3 numbers for mode RGB, got 2"),
        ("image: {mode: L, std: [1, 1, 1]}", "std needs 1 numbers for mode L, got 3"),
        ("image: {std: [1, 0, 1]}", "std must be greater than 0, got [1.0, 0.0, 1.0]"),
        ("image:\n  std: [1, 1,\n    .nan]", "f.yaml:3: image.std.2: Input should be a finite number, got nan"),
        ("image: {resize: {}}", "image.resize: give either shorter_side, or both height and width"),
        ("image: {resize: {height: 3}}", "give either shorter_side, or both height and width"),
        ("image: {resize: {height: 3, width: 3, shorter_side: 3}}", "give either shorter_side, or both"),
        ("image:\n  resize:\n    shorter_side: 9\n    interpolation: cubic", "f.yaml:4: image.resize.interpolation: "),
        ("image: {center_crop: yes}", "must be a number, got true"),
        ("image: {center_crop: 2.5}", "got 2.5"),
        ("image: {center_crop: 99999}", "less than or equal to 16384"),
        ("image: {resize: {shorter_side: 9}, center_crop: 10}", "center_crop is 10x10 pixels, more than resize leaves"),
        ("image: {resize: {height: 9, width: 20}, center_crop: 10}", "more than resize leaves (20x9)"),
        ("image: {field: []}", "image.field: "),
        ("image: {background: [1, 2]}", "image.background: "),
        ("image: {background: [1, 2, 256]}", "image.background.2: "),
        ("image: {limits: {bytes: 0}}", "image.limits.bytes: Input should be greater than 0, got 0"),
        ("image: {limits: {bytes: true}}", "image.limits.bytes: must be a number, got true"),
        ("image: {limits: {bytes: ten}}", "image.limits.bytes: "),
        ("image: {limits: {pixels: 179M}}", f"less than or equal to {MOST_PIXELS}, got '179M'"),
        ("image: {limits: {formats: [PNG, SGI]}}", "image.limits.formats.1: "),
        ("image: {limits: {formats: []}}", "image.limits.formats: "),
        ("output: {task: segmentation}", "output.task: Input should be 'classification' or 'raw'"),
        ("output: {task: classification, labels: [yes, no]}", "output.labels: label 0 must be text"),
        (
            "output: {task: classification, labels: 5}",
            "output.labels: must be a file's name or a list of labels, got 5",
        ),
        ("output: {labels: [a]}", "f.yaml:1: output: only task: classification uses labels, got task: raw"),
        ("output: {task: raw, top_k: 3}", "only task: classification uses top_k, got task: raw"),
        ("output: {task: classification, response: outputs}", "leave out task: classification"),
        ("max_instances: 0", "f.yaml:1: max_instances: "),
        ("a: 1\nb: 2\nmodel_name: x\nimage:\n  a: 1\n  a: 2", "f.yaml:6: no valid YAML: the key 'a' is given twice"),
        ("image: {mode: L, mode: RGB}", "the key 'mode' is given twice, first on line 1"),
        ("image: [", "f.yaml:1: no valid YAML"),
        ("? [a]\n: 1", "no valid YAML"),
        ("- a\n- b", "f.yaml: the file must hold a mapping of keys, got list"),
        ("1: 2", "f.yaml:1: 1: Keys should be strings"),
        ("!!python/object/apply:os.getcwd []", "no valid YAML"),
    ],
)
def test_what_breaks_a_rule_is_refused_with_its_place(text: str, message: str) -> None:
    assert message in refused(text)


def test_every_finding_is_told_at_once() -> None:
    message = refused("modelname: x\nimage:\n  mode: HSV\noutput:\n  topk: 1")
    assert [line.split(":")[1] for line in message.splitlines()] == ["3", "5", "1"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1", 1),
        ("10MiB", 10 * 2**20),
        ("10Mi", 10 * 2**20),
        ("10 mb", 10_000_000),
        ("50M", 50_000_000),
        ("1.5k", 1500),
        ("2e6", 2_000_000),
        ("7B", 7),
        ("2GiB", 2**31),
        ("2g", 2_000_000_000),
    ],
)
def test_quantities(text: str, number: int) -> None:
    assert quantity(text) == number
    assert parse_config(f"image: {{limits: {{bytes: {text}}}}}").image.limits.bytes == number


@pytest.mark.parametrize("text", ["", "M", "-1", "1 2", "1iB", "1x", "1MM", "0x10"])
def test_what_is_no_quantity_is_left_to_be_refused(text: str) -> None:
    assert quantity(text) == text


def test_square_crops_and_exact_sizes() -> None:
    assert (
        parse_config("image: {center_crop: 8}").image.center_crop
        == parse_config("image: {center_crop: {height: 8, width: 8}}").image.center_crop
    )
    wide = parse_config("image: {resize: {height: 8, width: 20}, center_crop: {height: 8, width: 20}}").image
    assert wide.center_crop is not None
    assert (wide.center_crop.height, wide.center_crop.width) == (8, 20)
    # a crop wider than the shorter side fits pictures that are wide enough; which ones, only a picture tells
    assert parse_config("image: {resize: {shorter_side: 8}, center_crop: {height: 8, width: 20}}").image.center_crop


def test_a_single_field_or_format_needs_no_list() -> None:
    image = parse_config("image: {field: picture, limits: {formats: PNG}}").image
    assert image.field == ("picture",)
    assert image.limits.formats == ("PNG",)


def test_yaml_merges_are_no_duplicates() -> None:
    text = "image: &a {mode: L}\noutput: {task: raw}\nserver: {<<: *a, mode: RGB}"
    assert parse_config(text).server == {"mode": "RGB"}


@pytest.mark.parametrize("text", ["", "predictor:", "predictor: {host: other}", "model_name: file"])
def test_overrides_win(text: str) -> None:
    config = parse_config(text, overrides={"model_name": "flag", "predictor.host": "here:1"})
    assert (config.model_name, config.predictor.host) == ("flag", "here:1")


def test_overrides_leave_the_rest_alone_and_are_checked_too() -> None:
    config = parse_config("predictor: {retries: 4}", overrides={"predictor.host": "h"})
    assert config.predictor.retries == 4
    with pytest.raises(ConfigError, match=r"predictor\.protocol: .* got 'v1'"):
        parse_config("", overrides={"predictor.protocol": "v1"})
    with pytest.raises(ConfigError, match="predictor: Input should be a valid dictionary"):
        parse_config("predictor: localhost", overrides={"predictor.host": "h"})


def test_the_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_config("").model_name = "other"  # type: ignore[misc]


# --- files ------------------------------------------------------------------------------------------------------------


def write(folder: Path, labels: bytes) -> Path:
    (folder / "labels.txt").write_bytes(labels)
    path = folder / "transformer.yaml"
    path.write_text("model_name: a\noutput:\n  task: classification\n  labels: labels.txt\n")
    return path


def test_labels_lie_beside_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeffcat \r\ndog\nünïcode\n\n".encode())
    assert load_config(path).output.labels == ("cat", "dog", "ünïcode")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
        (b"cat\n\ndog\n", "line 2 is empty"),
        (b"\xff\xfe\xff", "cannot be read"),
    ],
)
def test_labels_that_would_shift_are_refused(tmp_path: Path, labels: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(tmp_path, labels))
    assert f"{tmp_path / 'transformer.yaml'}:4: output.labels: " in str(caught.value)


def test_a_missing_labels_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, b"")
    (tmp_path / "labels.txt").unlink()
    with pytest.raises(
        ConfigError, match=r"transformer\.yaml:4: output\.labels: .*labels\.txt: cannot be read: No such"
    ):
        load_config(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "binary.yaml")


# --- the README -------------------------------------------------------------------------------------------------------

README = Path(__file__).resolve().parents[2] / "transformers" / "README.md"


def test_the_readme_names_every_key() -> None:
    def keys(section: type[Section], prefix: str) -> list[str]:
        found = []
        for name, field in section.model_fields.items():
            members = (field.annotation, *getattr(field.annotation, "__args__", ()))
            inner = [member for member in members if isinstance(member, type) and issubclass(member, Section)]
            whole = not inner or name in ("resize", "center_crop")
            found += [prefix + name] if whole else keys(inner[0], f"{prefix}{name}.")
        return found

    text = README.read_text(encoding="utf-8")
    assert [key for key in keys(TransformerConfig, "") if f"`{key}`" not in text] == []


def test_the_readmes_file_and_class_work(tmp_path: Path) -> None:
    blocks = re.findall(r"```(yaml|python)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    path = tmp_path / "transformer.yaml"
    path.write_text(next(text for kind, text in blocks if kind == "yaml"))
    names: dict[str, Any] = {}
    exec(next(text for kind, text in blocks if kind == "python"), names)
    digits = names["Digits"](load_config(path))
    assert digits.config.output.labels == ("cat", "dog")
    with pytest.raises(InvalidArgument, match="'kind' must be 'digit'"):
        digits.preprocess_instance({})
    answer = digits.postprocess_instance({"scores": np.array([0, 2, 1])}, {"caption": "seven"})
    assert answer == {"digit": 1, "caption": "seven"}
