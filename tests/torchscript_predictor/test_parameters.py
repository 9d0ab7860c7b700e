"""The parameters of a model configuration."""

import pytest

from torchscript_predictor.parameters import ExecutionParameters, ParameterError, read_parameters
from torchscript_predictor.runtimes import Runtime


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, ExecutionParameters()),
        ({"INFERENCE_MODE": "false"}, ExecutionParameters(inference_mode=False)),
        ({"INFERENCE_MODE": "TRUE"}, ExecutionParameters()),
        ({"DISABLE_OPTIMIZED_EXECUTION": "1"}, ExecutionParameters(optimized_execution=False)),
        ({"ENABLE_WEIGHT_SHARING": "true"}, ExecutionParameters(weight_sharing=True)),
        ({"INTRA_OP_THREAD_COUNT": "3"}, ExecutionParameters(intra_op_thread_count=3)),
        ({"INTER_OP_THREAD_COUNT": "3"}, ExecutionParameters(process_wide=(("INTER_OP_THREAD_COUNT", 3),))),
        ({"ENABLE_JIT_EXECUTOR": "false"}, ExecutionParameters(process_wide=(("ENABLE_JIT_EXECUTOR", False),))),
        ({"ENABLE_JIT_PROFILING": "true"}, ExecutionParameters(process_wide=(("ENABLE_JIT_PROFILING", True),))),
        ({"ENABLE_TENSOR_FUSER": "0"}, ExecutionParameters(process_wide=(("ENABLE_TENSOR_FUSER", False),))),
        ({"MODULE_METHOD_NAME": "embed"}, ExecutionParameters(method="embed")),
    ],
)
def test_honoured(parameters, expected):
    assert read_parameters(parameters) == (expected, [])


@pytest.mark.parametrize(
    ("runtime", "parameters", "expected"),
    [
        (Runtime.TORCHSCRIPT, {"DISABLE_CUDNN": "true"}, ExecutionParameters(process_wide=(("DISABLE_CUDNN", True),))),
        (Runtime.TORCHSCRIPT, {"ENABLE_CACHE_CLEANING": "true"}, ExecutionParameters(cache_cleaning=True)),
        (Runtime.PT2, {"CACHE_CLEANING_ENABLED": "true"}, ExecutionParameters(cache_cleaning=True)),
        (
            Runtime.PYTHON,
            {"NUM_THREADS": "2", "INTRA_OP_THREAD_COUNT": "3"},
            ExecutionParameters(intra_op_thread_count=2),
        ),
        (
            Runtime.PYTHON,
            {"NUM_INTEROP_THREADS": "2"},
            ExecutionParameters(process_wide=(("INTER_OP_THREAD_COUNT", 2),)),
        ),
        (Runtime.PYTHON, {"MODULE_CLASS_NAME": "Net"}, ExecutionParameters(class_name="Net")),
        (
            Runtime.PYTHON,
            {"TORCH_COMPILE_OPTIONAL_PARAMETERS": '{"disable": true, "mode": "default"}'},
            ExecutionParameters(compile_options=(("disable", True), ("mode", "default"))),
        ),
    ],
)
def test_honoured_with_a_gpu_and_by_other_runtimes(runtime, parameters, expected):
    assert read_parameters(parameters, runtime, has_gpu=True) == (expected, [])


def test_what_would_change_answers_if_it_were_ignored_is_refused():
    with pytest.raises(ParameterError, match=r"a \.pt2 file holds one function; leave the parameter out"):
        read_parameters({"MODULE_METHOD_NAME": "embed"}, Runtime.PT2)


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
        ("MODULE_METHOD_NAME", "a.b"),
        ("MODULE_CLASS_NAME", ""),
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
        ("ENABLE_CACHE_CLEANING", "true", "parameter ENABLE_CACHE_CLEANING has no effect: there is no GPU here"),
        ("CACHE_CLEANING_ENABLED", "true", 'has no effect: it belongs to platform: "torch_aoti"'),
        ("NUM_THREADS", "2", "it belongs to the Python runtime; set INTRA_OP_THREAD_COUNT"),
        ("NUM_INTEROP_THREADS", "2", "it belongs to the Python runtime; set INTER_OP_THREAD_COUNT"),
        ("TORCH_COMPILE_OPTIONAL_PARAMETERS", "{}", "it belongs to the Python runtime"),
        ("MODULE_CLASS_NAME", "Net", "it belongs to the Python runtime"),
        ("FORCE_CPU_ONLY_INPUT_TENSORS", "yes", "inputs go to the device of their instance"),
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
