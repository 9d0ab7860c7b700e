"""What the model takes, read from metadata and configuration, and every mismatch with both sides named."""

from collections.abc import Mapping
from typing import Any

import pytest

from kserve_transformer.config import PredictorSection
from kserve_transformer.contract import Contract, Mismatch, check_classes, check_output, check_pictures, read_contract
from oip.messages import ModelMetadata, TensorMetadata

PICTURE = TensorMetadata("INPUT__0", "FP32", (-1, 3, 32, 32))
ONE = TensorMetadata("INPUT__0", "FP32", (1, 3, 32, 32))
BARE = TensorMetadata("INPUT__0", "FP32", (3, 32, 32))
MASK = TensorMetadata("mask", "FP32", (-1, 32, 32))
SCORES = TensorMetadata("OUTPUT__0", "FP32", (-1, 10))


def read(
    *inputs: TensorMetadata,
    config: Mapping[str, Any] | None = None,
    outputs: tuple[TensorMetadata, ...] = (SCORES,),
    **section: Any,
) -> Contract:
    metadata = ModelMetadata("m", ("1",), "pytorch_libtorch", inputs, outputs)
    return read_contract(metadata, config, PredictorSection.model_validate(section))


@pytest.mark.parametrize(
    ("tensor", "stated", "ours", "max_rows", "batch_dimension"),
    [
        (PICTURE, 8, None, 8, True),
        (PICTURE, 1, None, 1, True),
        (PICTURE, 8, 3, 3, True),
        (PICTURE, 8, 8, 8, True),
        (PICTURE, 8, 0, 8, True),
        (PICTURE, 0, None, None, True),
        (PICTURE, 0, 4, 4, True),
        (PICTURE, 0, 0, None, True),
        (ONE, 0, None, 1, False),
        (ONE, 0, 1, 1, False),
        (BARE, 0, None, 1, False),
        (PICTURE, None, None, 1, True),
        (PICTURE, None, 16, 16, True),
        (PICTURE, None, 0, None, True),
        (ONE, None, None, 1, False),
        (BARE, None, 0, 1, False),
    ],
)
def test_how_many_instances_a_call_may_hold(
    tensor: TensorMetadata, stated: int | None, ours: int | None, max_rows: int | None, batch_dimension: bool
) -> None:
    config = None if stated is None else {"max_batch_size": stated}
    contract = read(tensor, config=config, **({} if ours is None else {"max_batch_size": ours}))
    assert (contract.max_rows, contract.batch_dimension) == (max_rows, batch_dimension)
    assert contract.main_input is tensor


def test_no_max_batch_size_in_a_configuration_means_zero() -> None:
    assert read(PICTURE, config={}).max_rows is None


@pytest.mark.parametrize("stated", ["8", True, -1, 1.5, None])
def test_a_max_batch_size_that_is_no_number(stated: Any) -> None:
    with pytest.raises(Mismatch, match="the predictor's configuration has max_batch_size"):
        read(PICTURE, config={"max_batch_size": stated})


@pytest.mark.parametrize(
    ("tensor", "config", "message"),
    [
        (
            PICTURE,
            {"max_batch_size": 4},
            "the transformer's predictor.max_batch_size is 8, the predictor's model has max_batch_size 4",
        ),
        (
            ONE,
            {"max_batch_size": 0},
            "the transformer's predictor.max_batch_size is 8, the predictor's model takes one instance a call "
            "(INPUT__0 [1, 3, 32, 32] has no variable first dimension)",
        ),
        (
            BARE,
            None,
            "the transformer's predictor.max_batch_size is 8, the predictor's model takes one instance a call",
        ),
    ],
)
def test_more_instances_than_the_model_takes(tensor: TensorMetadata, config: Any, message: str) -> None:
    with pytest.raises(Mismatch) as caught:
        read(tensor, config=config, max_batch_size=8)
    assert message in str(caught.value)


def test_a_model_that_names_no_inputs() -> None:
    with pytest.raises(Mismatch, match="model 'm' has no inputs"):
        read()


def test_the_input_can_be_chosen() -> None:
    config = {"max_batch_size": 4}
    assert read(MASK, PICTURE, config=config).main_input is MASK
    assert read(MASK, PICTURE, config=config, input="INPUT__0").main_input is PICTURE
    with pytest.raises(Mismatch, match=r"predictor\.input is 'x', the predictor's model has mask, INPUT__0"):
        read(MASK, PICTURE, config=config, input="x")


@pytest.mark.parametrize("config", [{"max_batch_size": 8}, {"max_batch_size": 0}, None])
@pytest.mark.parametrize("tensor", [PICTURE, ONE, BARE])
@pytest.mark.parametrize("shape", [(3, 32, 32), None])
def test_pictures_that_fit(tensor: TensorMetadata, config: Any, shape: Any) -> None:
    if config == {"max_batch_size": 8} and tensor is not PICTURE:
        tensor = TensorMetadata("INPUT__0", "FP32", (-1, -1, -1, -1))
    check_pictures(read(tensor, config=config), shape, 3)


@pytest.mark.parametrize(
    ("inputs", "shape", "channels", "message"),
    [
        (
            [TensorMetadata("x", "UINT8", (-1, 3, 32, 32))],
            (3, 32, 32),
            3,
            "the transformer sends FP32 pictures, the predictor's input 'x' takes UINT8",
        ),
        (
            [PICTURE, MASK],
            (3, 32, 32),
            3,
            "the transformer sends one picture tensor, the predictor's model also needs mask; write a ",
        ),
        (
            [PICTURE],
            (3, 224, 224),
            3,
            "the transformer makes pictures of [3, 224, 224] (channels, height, width), the predictor's input "
            "'INPUT__0' takes [3, 32, 32]; set image.mode, image.resize and image.center_crop to match",
        ),
        ([PICTURE], (1, 32, 32), 1, "makes pictures of [1, 32, 32]"),
        ([PICTURE], None, 1, "makes pictures of [1, any, any]"),
        ([TensorMetadata("x", "FP32", (-1, 32, 32, 3))], (3, 32, 32), 3, "takes [32, 32, 3]"),
        ([TensorMetadata("x", "FP32", (-1, 3072))], (3, 32, 32), 3, "takes [3072]"),
        ([TensorMetadata("x", "FP32", (-1, 1, 3, 32, 32))], (3, 32, 32), 3, "takes [1, 3, 32, 32]"),
    ],
)
def test_pictures_that_do_not_fit(inputs: list[TensorMetadata], shape: Any, channels: int, message: str) -> None:
    with pytest.raises(Mismatch) as caught:
        check_pictures(read(*inputs, config={"max_batch_size": 8}), shape, channels)
    assert message in str(caught.value)


def test_a_fixed_batch_of_two_takes_no_single_picture() -> None:
    two = TensorMetadata("x", "FP32", (2, 3, 32, 32))
    with pytest.raises(Mismatch, match=r"takes \[2, 3, 32, 32\]"):
        check_pictures(read(two, config={"max_batch_size": 0}), (3, 32, 32), 3)


def test_outputs_and_classes_that_fit() -> None:
    contract = read(PICTURE, config={"max_batch_size": 8}, outputs=(SCORES, MASK))
    assert check_output(contract, None) is SCORES
    assert check_output(contract, "mask") is MASK
    check_classes(contract, None, 10)
    check_classes(contract, "OUTPUT__0", None)
    check_classes(read(ONE, config={}, outputs=(TensorMetadata("o", "FP32", (1, 10)),)), None, 10)
    check_classes(read(PICTURE, config={}, outputs=(TensorMetadata("o", "FP32", (-1, -1)),)), None, 10)
    silent = read(PICTURE, config={}, outputs=())
    assert check_output(silent, "anything") is None
    check_classes(silent, "anything", 10)


@pytest.mark.parametrize(
    ("output", "labels", "message"),
    [
        ("x", None, "the transformer's output.output is 'x', the predictor's model has OUTPUT__0, names"),
        (None, 9, "the transformer has 9 labels, the predictor's output 'OUTPUT__0' has 10 classes"),
        ("names", None, "the transformer classifies numbers, the predictor's output 'names' is BYTES"),
    ],
)
def test_classes_that_do_not_fit(output: str | None, labels: int | None, message: str) -> None:
    names = TensorMetadata("names", "BYTES", (-1, 10))
    contract = read(PICTURE, config={"max_batch_size": 8}, outputs=(SCORES, names))
    with pytest.raises(Mismatch) as caught:
        check_classes(contract, output, labels)
    assert message in str(caught.value)


def test_a_contract_in_one_line() -> None:
    assert (
        read(PICTURE, config={"max_batch_size": 8}).describe()
        == "INPUT__0 FP32 [-1, 3, 32, 32] -> OUTPUT__0 FP32 [-1, 10], 8 instances a call"
    )
    assert read(ONE, config={}).describe().endswith("1 instance a call")
    assert read(PICTURE, config={}).describe().endswith("any number of instances a call")
