"""The parameters of a model configuration."""

import pytest

from torchscript_predictor.parameters import ExecutionParameters, ParameterError, read_parameters


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, ExecutionParameters()),
        ({"INFERENCE_MODE": "false"}, ExecutionParameters(inference_mode=False)),
        ({"INFERENCE_MODE": "TRUE"}, ExecutionParameters()),
        ({"DISABLE_OPTIMIZED_EXECUTION": "1"}, ExecutionParameters(optimized_execution=False)),
        ({"ENABLE_WEIGHT_SHARING": "true"}, ExecutionParameters(weight_sharing=True)),
        ({"INTRA_OP_THREAD_COUNT": "3"}, ExecutionParameters(intra_op_thread_count=3)),
    ],
)
def test_honoured(parameters, expected):
    assert read_parameters(parameters) == (expected, [])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INFERENCE_MODE", "perhaps"),
        ("INFERENCE_MODE", ""),
        ("INFERENCE_MODE", "true "),
        ("DISABLE_CUDNN", "2"),
        ("INTRA_OP_THREAD_COUNT", "0"),
        ("INTRA_OP_THREAD_COUNT", "-1"),
        ("INTRA_OP_THREAD_COUNT", "1.0"),
        ("INTRA_OP_THREAD_COUNT", "²"),
        ("INTRA_OP_THREAD_COUNT", "9" * 5000),
        ("INTER_OP_THREAD_COUNT", "many"),
    ],
)
def test_a_value_of_the_wrong_kind_names_key_and_value(key, value):
    with pytest.raises(ParameterError) as caught:
        read_parameters({key: value})
    assert caught.value.key == key
    assert str(caught.value).startswith(f"parameter {key} has value {value[:80]!r}; it takes ")


@pytest.mark.parametrize(
    ("key", "value", "warning"),
    [
        ("DISABLE_CUDNN", "true", "parameter DISABLE_CUDNN has no effect: "),
        ("INTER_OP_THREAD_COUNT", "2", "parameter INTER_OP_THREAD_COUNT has no effect: "),
        ("EXECUTION_ENV_PATH", "x", "parameter EXECUTION_ENV_PATH has no effect: "),
        ("INFERENCE_MOD", "true", "did you mean INFERENCE_MODE?"),
        ("intra_op_thread_count", "2", "did you mean INTRA_OP_THREAD_COUNT?"),
        ("colour", "red", "parameter colour (value 'red') is not known here and has no effect"),
    ],
)
def test_warnings(key, value, warning):
    settings, [(warned, text)] = read_parameters({key: value})
    assert settings == ExecutionParameters()
    assert warned == key
    assert warning in text
