"""ModelMesh's schema.json."""

import json

import pytest

from torchscript_predictor.model_config import ModelInput, ModelOutput, parse_model_config
from torchscript_predictor.schema_json import SchemaError, SchemaTensor, read_schema


def schema(inputs=None, outputs=None):
    return {
        "inputs": inputs or [{"name": "INPUT__0", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": outputs or [{"name": "OUTPUT__0", "datatype": "BYTES", "shape": [-1]}],
    }


def read(document):
    return read_schema(json.dumps(document), "m/schema.json")


def test_a_schema():
    found = read(schema())
    assert found.inputs == (SchemaTensor("INPUT__0", "TYPE_FP32", (-1, 3)),)
    assert found.outputs == (SchemaTensor("OUTPUT__0", "TYPE_STRING", (-1,)),)


def test_without_a_configuration_the_batch_dimension_is_one_like_others():
    config = parse_model_config("", "m", amend=read(schema()).amend)
    assert config.max_batch_size == 0
    assert config.inputs == (ModelInput("INPUT__0", "TYPE_FP32", (-1, 3)),)
    assert config.outputs == (ModelOutput("OUTPUT__0", "TYPE_STRING", (-1,)),)
    assert config.warnings == ()


CONFIGURED = """
max_batch_size: 4
input { name: "INPUT__0" data_type: TYPE_FP32 dims: %s reshape { shape: [ 3, 1 ] } }
output { name: "OUTPUT__0" data_type: TYPE_INT64 dims: 2 }
"""
INT64 = [{"name": "OUTPUT__0", "datatype": "INT64", "shape": [-1, 2]}]


@pytest.mark.parametrize(
    ("dims", "warnings"),
    [("3", ()), ("4", ("m/config.pbtxt: the inputs of schema.json replace those of config.pbtxt, which differ",))],
)
def test_beside_a_configuration_with_batches_the_batch_dimension_is_left_out(dims, warnings):
    config = parse_model_config(CONFIGURED % dims, "m", amend=read(schema(outputs=INT64)).amend)
    assert config.inputs == (ModelInput("INPUT__0", "TYPE_FP32", (3,), (3, 1)),)
    assert config.outputs == (ModelOutput("OUTPUT__0", "TYPE_INT64", (2,)),)
    assert config.warnings == warnings


def entry(**changes):
    return {**schema()["inputs"][0], **changes}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{\n  inputs: 3}", "m/schema.json:2: "),
        ("[]", "m/schema.json is no JSON object"),
        ("[" * 100_000, "m/schema.json is nested too deeply"),
        ("{}", "m/schema.json: inputs must be a list with at least one"),
        (json.dumps({**schema(), "outputs": []}), "outputs must be a list with at least one"),
        (json.dumps(schema(inputs=[3])), "m/schema.json: inputs[0] is no object"),
        (json.dumps(schema(inputs=[entry(), entry(name="")])), "inputs[1] has no name"),
        (json.dumps(schema(inputs=[entry(datatype="FP33")])), "inputs[0].datatype is 'FP33'; it is one of BOOL, "),
        (json.dumps(schema(inputs=[entry(datatype=None)])), "inputs[0].datatype is 'None'"),
        (json.dumps(schema(inputs=[entry(shape=[0])])), "inputs[0].shape is [0]; it is a list of sizes"),
        (json.dumps(schema(inputs=[entry(shape=[True])])), "inputs[0].shape is [True]"),
        (json.dumps(schema(inputs=[entry(shape=[])])), "inputs[0].shape is []"),
    ],
)
def test_a_schema_that_is_none(text, message):
    with pytest.raises(SchemaError) as caught:
        read_schema(text, "m/schema.json")
    assert message in str(caught.value)
