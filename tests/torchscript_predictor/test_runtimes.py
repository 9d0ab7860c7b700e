"""Which runtime a configuration asks for."""

import pytest

from torchscript_predictor.compile_options import read_compile_options
from torchscript_predictor.runtimes import Runtime, UnservedError, choose_runtime


@pytest.mark.parametrize(
    ("fields", "filename", "files", "expected"),
    [
        (("", "", ""), "", (), Runtime.TORCHSCRIPT),
        (("pytorch", "", ""), "", (), Runtime.TORCHSCRIPT),
        (("", "libtorch", ""), "", ("model.pt2",), Runtime.TORCHSCRIPT),
        (("pytorch", "pytorch_libtorch", ""), "net.pt2", (), Runtime.TORCHSCRIPT),
        (("", "torch_aoti", ""), "", (), Runtime.PT2),
        (("pytorch", "torch_aoti", ""), "", ("model.pt",), Runtime.PT2),
        (("python", "pytorch", ""), "", (), Runtime.PYTHON),
        (("", "", "model.py"), "", (), Runtime.PYTHON),
        (("pytorch", "pytorch_libtorch", "model.py"), "", (), Runtime.PYTHON),
        (("", "", ""), "", ("model.pt2",), Runtime.PT2),
        (("", "", ""), "", ("model.py",), Runtime.PYTHON),
        (("", "", ""), "", ("model.py", "model.pt"), Runtime.TORCHSCRIPT),  # as in Triton
        (("", "", ""), "net.pt2", (), Runtime.PT2),
        (("", "", ""), "net.py", (), Runtime.PYTHON),
        (("", "", ""), "net.bin", ("model.pt2",), Runtime.TORCHSCRIPT),
        (("", "", "libtriton_pytorch.so"), "", (), Runtime.TORCHSCRIPT),
    ],
)
def test_chosen(fields, filename, files, expected):
    assert choose_runtime(*fields, filename, files) is expected


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        (("python", "", ""), "backend", "give model.py one torch.nn.Module and set platform"),
        (("python", "pytorch_libtorch", ""), "backend", "TritonPythonModel is not served"),
        (("onnxruntime", "", ""), "backend", "unexpected 'platform' and 'backend' pair, got: '', 'onnxruntime'"),
        (("", "pytorch", ""), "platform", "unexpected 'platform' and 'backend' pair"),
        (("pytorch", "tensorrt_plan", ""), "platform", "what is served here is"),
        (("", "", "mine.py"), "runtime", 'the Python runtime is runtime: "model.py"'),
    ],
)
def test_unserved(fields, field, message):
    with pytest.raises(UnservedError) as caught:
        choose_runtime(*fields)
    assert caught.value.field == field
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("{}", {}),
        ('{"disable": true}', {"disable": True}),
        (
            '{"fullgraph": false, "dynamic": null, "backend": "inductor"}',
            {"fullgraph": False, "dynamic": None, "backend": "inductor"},
        ),
        ('{"options": {"max_autotune": true}}', {"options": {"max_autotune": True}}),
    ],
)
def test_compile_options(text, options):
    assert read_compile_options(text) == options


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("disable=true", "is not JSON: Expecting value at column 1; write an object"),
        ("", "is not JSON"),
        ('{"disable": true', "is not JSON"),
        ("true", "is JSON but no object"),
        ('{"model": "x"}', "has the key 'model', which is not for a model to set; did you mean 'mode'?"),
        ('{"colour": 1}', "it takes fullgraph, dynamic, backend, mode, options, disable"),
        ('{"disable": "true"}', "'disable' is \"true\"; it takes true or false"),
        ('{"mode": "default", "options": {"a": 1}}', "both 'mode' and 'options'"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_compile_options_that_are_none(text, message):
    with pytest.raises(ValueError, match=r"^parameter TORCH_COMPILE_OPTIONAL_PARAMETERS") as caught:
        read_compile_options(text)
    assert message in str(caught.value)
