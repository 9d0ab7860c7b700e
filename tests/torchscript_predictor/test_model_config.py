"""Reading `config.pbtxt`: what is understood, what is refused and with which words."""

import pytest

from torchscript_predictor.model_config import (
    ConfigError,
    InstanceGroup,
    ModelInput,
    ModelOutput,
    WarmupInput,
    WarmupSample,
    parse_model_config,
    reshaped,
)
from torchscript_predictor.parameters import ExecutionParameters
from torchscript_predictor.version_policy import VersionPolicy

INPUT = 'input { name: "x" data_type: TYPE_FP32 dims: [ 3, -1 ] }\n'
OUTPUT = 'output { name: "y" data_type: TYPE_FP32 dims: 10 }\n'
BASE = INPUT + OUTPUT


def parse(text, **options):
    return parse_model_config(text, "m", **options)


def test_the_least_configuration_gets_triton_s_defaults():
    config = parse(BASE)
    assert (config.name, config.platform, config.backend) == ("m", "pytorch_libtorch", "pytorch")
    assert config.max_batch_size == 0
    assert config.inputs == (ModelInput("x", "TYPE_FP32", (3, -1)),)
    assert config.outputs == (ModelOutput("y", "TYPE_FP32", (10,)),)
    assert config.version_policy == VersionPolicy("latest", num_versions=1)
    assert config.instance_groups == (InstanceGroup("m_0", "KIND_CPU", 1),)
    assert config.parameters == ExecutionParameters()
    assert config.model_filename == "model.pt"
    assert config.warmup == ()
    assert config.warnings == ()


def test_all_that_is_honoured():
    config = parse(
        """
        name: "m"
        backend: "pytorch"
        platform: "libtorch"
        max_batch_size: 8
        default_model_filename: "net.pt"
        version_policy { specific { versions: [ 1, 3 ] } }
        input [
          { name: "x" data_type: TYPE_BF16 dims: [ 4 ] reshape { shape: [ 2, 2 ] } },
          { name: "s" data_type: TYPE_STRING dims: [ 1 ] reshape { shape: [ ] } }
        ]
        output [ { name: "y" data_type: TYPE_UINT64 dims: [ -1 ] } ]
        instance_group [ { count: 2 kind: KIND_CPU }, { name: "more" kind: KIND_MODEL } ]
        parameters { key: "INFERENCE_MODE" value: { string_value: "false" } }
        model_warmup [ {
          name: "one"
          batch_size: 2
          count: 3
          inputs { key: "x" value: { data_type: TYPE_BF16 dims: 4 zero_data: true } }
          inputs { key: "s" value: { data_type: TYPE_STRING dims: 1 input_data_file: "s.bin" } }
        } ]
        """
    )
    assert config.max_batch_size == 8
    assert config.version_policy == VersionPolicy("specific", versions=(1, 3))
    assert config.input("x") == ModelInput("x", "TYPE_BF16", (4,), (2, 2))
    assert config.input("s").reshape == ()
    assert config.input("s").datatype == "BYTES"
    assert config.output("y").shape(8) == (-1, -1)
    assert config.instance_groups == (InstanceGroup("m_0", "KIND_CPU", 2), InstanceGroup("more", "KIND_MODEL", 1))
    assert not config.parameters.inference_mode
    assert config.model_filename == "net.pt"
    assert config.warmup == (
        WarmupSample(
            "one",
            2,
            3,
            (
                WarmupInput("s", "TYPE_STRING", (1,), "input_data_file", "s.bin"),
                WarmupInput("x", "TYPE_BF16", (4,), "zero_data"),
            ),
        ),
    )
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # no configuration at all
        ("colour: 3", 'm/config.pbtxt:1:1: Message type "inference.ModelConfig" has no field named "colour".'),
        ("\n  max_batchsize: 3", "m/config.pbtxt:2:3: "),
        ("max_batchsize: 3", "Did you mean max_batch_size?"),
        ("input { nam: 'x' }", "Did you mean name?"),
        ("max_batch_size: many", "m/config.pbtxt:1:17: "),
        ("max_batch_size: 1\nmax_batch_size: 2", "m/config.pbtxt:2:17: "),
        ("input {", "m/config.pbtxt:"),
        ("input { data_type: TYPE_FP33 }", "TYPE_FP33"),
        # identity
        (BASE + 'name: "other"', "m/config.pbtxt:3: name is 'other' but the folder is 'm'"),
        (BASE + 'platform: "onnxruntime_onnx"', "unexpected 'platform' and 'backend' pair"),
        (BASE + 'backend: "python"', "m/config.pbtxt:3: unexpected 'platform' and 'backend' pair, got: '', 'python'"),
        (BASE + 'backend: "python"', "TritonPythonModel is not served: give model.py one torch.nn.Module and set plat"),
        (BASE + 'backend: "onnxruntime"', "unexpected 'platform' and 'backend' pair"),
        (BASE + 'platform: "ensemble"', "ensembles are not served; use one torch.nn.Module that calls the models"),
        ("ensemble_scheduling { }", "ensembles are not served"),
        (BASE + 'runtime: "other.py"', "runtime 'other.py' is not served; the Python runtime is runtime: \"model.py\""),
        (BASE + 'default_model_filename: "../model.pt"', "m/config.pbtxt:3: default_model_filename is '../model.pt'"),
        (BASE + 'default_model_filename: ".."', "default_model_filename is '..'"),
        # what would change answers or safety if it were ignored
        (BASE + "sequence_batching { }", "m/config.pbtxt:3: sequence batching is not served"),
        (BASE + "sequence_batching { }", "make the state an input and an output of the model"),
        (BASE + "model_transaction_policy { decoupled: true }", "decoupled models are not served"),
        (BASE + 'model_repository_agents { agents { name: "checksum" } }', "model_repository_agents are not run"),
        (BASE + 'batch_input { target_name: "n" }', "batch_input is not served"),
        (BASE + 'batch_output { target_name: "n" }', "batch_output is not served"),
        # inputs and outputs
        (BASE + "max_batch_size: -1", "m/config.pbtxt:3: max_batch_size is -1; it must be 0"),
        (OUTPUT, "must contain at least one input, none were specified"),
        (INPUT, "must contain at least one output, none were specified"),
        (BASE + INPUT, "input 'x' is declared 2 times"),
        (BASE + "input { data_type: TYPE_FP32 dims: 1 }", "m/config.pbtxt:3: model input 1 must specify 'name'"),
        (INPUT + 'output { name: "y" dims: 1 }', "model output 'y' must specify 'data_type'"),
        (INPUT + 'output { name: "y" data_type: TYPE_FP32 }', "model output 'y' must specify 'dims'"),
        (
            INPUT + 'output {\n name: "y"\n data_type: TYPE_FP32\n dims: [ 1,\n 0 ] }',
            "m/config.pbtxt:6: model output 'y'",
        ),
        (OUTPUT + 'input { name: "x" data_type: TYPE_FP32 dims: -2 }', "dimension 0 is -2; a dimension must be"),
        (OUTPUT + 'input { name: "x" data_type: TYPE_FP32 dims: 1 allow_ragged_batch: true }', "allow_ragged_batch"),
        (OUTPUT + 'input { name: "x" data_type: TYPE_FP32 dims: 1 is_shape_tensor: true }', "is_shape_tensor"),
        (OUTPUT + 'input { name: "x" data_type: TYPE_FP32 dims: 1 format: FORMAT_NCHW }', "format is for 3 dims"),
        (OUTPUT + 'input { name: "x" data_type: TYPE_STRING dims: [ 2, 2 ] }', "the rank must be 1, it is 2"),
        (
            OUTPUT + 'max_batch_size: 2 input { name: "x" data_type: TYPE_STRING dims: 1 }',
            "the rank must be 1, it is 2",
        ),
        # reshape
        (
            OUTPUT + 'input { name: "x" data_type: TYPE_FP32 dims: 4 reshape { shape: [ 3 ] } }',
            "different numbers of el",
        ),
        (OUTPUT + 'input { name: "x" data_type: TYPE_FP32 dims: 4 reshape { shape: 0 } }', "reshape dimension 0 is 0"),
        (OUTPUT + 'input { name: "x" data_type: TYPE_FP32 dims: 1 reshape { shape: [] } }', "an empty reshape needs"),
        (OUTPUT + 'input { name: "x" data_type: TYPE_FP32 dims: [-1,-1] reshape { shape: -1 } }', "variable-size"),
        (
            OUTPUT + 'input { name: "x" data_type: TYPE_FP32 dims: [2,-1] reshape { shape: [-1,2] } }',
            "different numbers",
        ),
        # versions and instances
        (BASE + "version_policy { latest { num_versions: 0 } }", "num_versions is 0; it must be 1 or more"),
        (BASE + "version_policy { specific { } }", "specific lists no versions"),
        (BASE + "version_policy { specific { versions: [ 1, 0 ] } }", "specific lists version 0"),
        (BASE + "instance_group { kind: KIND_GPU }", "instance group m_0 of model m has kind KIND_GPU but no GPUs"),
        (BASE + "instance_group { kind: KIND_CPU gpus: 0 }", "has kind KIND_CPU but specifies gpus"),
        (BASE + "instance_group { count: -1 }", "m/config.pbtxt:3: instance group m_0 of model m has count -1"),
        (BASE + "instance_group { count: 2000000000 }", "at most 1024 are allowed"),
        (BASE + 'instance_group { profile: "a" }', "profile is for TensorRT alone"),
        # parameters
        (
            BASE + '\nparameters { key: "A" value { string_value: "" } }\n'
            'parameters {\n key: "INFERENCE_MODE"\n value { string_value: "perhaps" } }',
            "m/config.pbtxt:5: parameter INFERENCE_MODE has value 'perhaps'",
        ),
        # warm-up
        (BASE + 'model_warmup { name: "w" batch_size: 1 }', "sample 'w' lacks input(s) x"),
        (BASE + 'model_warmup { name: "w" batch_size: 2 }', "batch_size 2; it must be from 1 to 1"),
        (
            BASE + 'model_warmup { batch_size: 1 inputs { key: "x" value { data_type: TYPE_FP32 dims: [3,-1] } } }',
            "they must be fixed and fit",
        ),
        (
            BASE + 'model_warmup { batch_size: 1 inputs { key: "x" value { data_type: TYPE_FP32 dims: [3,1] } } }',
            "must set one of zero_data, random_data, input_data_file",
        ),
        (
            BASE + 'model_warmup { batch_size: 1 inputs { key: "x" value { data_type: TYPE_FP64 dims: [3,1] } } }',
            "has data_type TYPE_FP64; the model takes TYPE_FP32",
        ),
        (
            BASE + 'model_warmup { batch_size: 1 inputs { key: "z" value { } } }',
            "gives input 'z'; the model's are x",
        ),
        (
            BASE
            + 'model_warmup { batch_size: 1 inputs { key: "x" '
            + 'value { data_type: TYPE_FP32 dims: [3,1] input_data_file: "../x" } } }',
            "must be a file under the model's folder warmup/",
        ),
    ],
)
def test_refused(text, message):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert message in str(caught.value)


def test_all_that_is_wrong_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        parse('name: "other"\nmax_batch_size: -1\n' + OUTPUT)
    assert str(caught.value).split("; m/") == [
        "m/config.pbtxt:1: name is 'other' but the folder is 'm'; they must be equal, or leave name out",
        "config.pbtxt:2: max_batch_size is -1; it must be 0 (no batch dimension) or more",
        "config.pbtxt: the model configuration must contain at least one input, none were specified",
    ]


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("response_cache { enable: true }", "response_cache has no effect"),
        ('cc_model_filenames { key: "8.0" value: "a.pt" }', "cc_model_filenames has no effect"),
        ('metric_tags { key: "a" value: "b" }', "metric_tags has no effect"),
        ("model_metrics { }", "model_metrics has no effect"),
        ('model_operations { op_library_filename: "a.so" }', "LD_PRELOAD"),
        ('runtime: "libtriton_pytorch.so"', "runtime has no effect"),
        ("optimization { graph { level: 1 } }", "optimization.graph has no effect"),
        ("instance_group { rate_limiter { } }", "rate_limiter has no effect"),
        ("instance_group { passive: true }", "passive has no effect"),
        ('instance_group { host_policy: "a" }', "host_policy has no effect"),
        ("instance_group { secondary_devices { } }", "secondary_devices has no effect"),
        ('parameters { key: "INFERENCE_MOD" value { string_value: "1" } }', "did you mean INFERENCE_MODE?"),
        ('parameters { key: "ENABLE_CACHE_CLEANING" value { string_value: "true" } }', "m/config.pbtxt:3: parameter"),
        ('model_warmup { inputs { key: "x" value { data_type: TYPE_FP32 dims: [3,1] zero_data: true } } }', "skipped"),
    ],
)
def test_a_field_without_effect_is_warned_about(text, warning):
    [found] = parse(BASE + text).warnings
    assert warning in found


def test_a_parameter_that_is_given_twice_is_warned_about():
    once = 'parameters { key: "INFERENCE_MODE" value { string_value: "%s" } }\n'
    config = parse(BASE + once % "true" + once % "false")
    assert not config.parameters.inference_mode
    assert config.warnings == (
        "m/config.pbtxt:4: parameter INFERENCE_MODE is given several times; the last one counts",
    )


@pytest.mark.parametrize(
    ("group", "gpu_count", "expected"),
    [
        ("kind: KIND_AUTO count: 2", 0, InstanceGroup("m_0", "KIND_CPU", 2)),
        ("kind: KIND_AUTO gpus: 1", 1, InstanceGroup("m_0", "KIND_CPU", 1)),
        ("kind: KIND_AUTO", 2, InstanceGroup("m_0", "KIND_GPU", 1, (0, 1))),
        ("kind: KIND_GPU gpus: 1", 2, InstanceGroup("m_0", "KIND_GPU", 1, (1,))),
        ("kind: KIND_CPU", 2, InstanceGroup("m_0", "KIND_CPU", 1)),
    ],
)
def test_instance_group_kinds_are_decided_by_the_machine(group, gpu_count, expected):
    assert parse(BASE + f"instance_group {{ {group} }}", gpu_count=gpu_count).instance_groups == (expected,)


def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="specifies GPU 2; the GPUs here are 0 to 1"):
        parse(BASE + "instance_group { kind: KIND_GPU gpus: [ 0, 2 ] }", gpu_count=2)


@pytest.mark.parametrize(
    ("shape", "given", "wanted", "result"),
    [
        ((4,), (4,), (2, 2), (2, 2)),
        ((1,), (1,), (), ()),
        ((5, 6), (-1, -1), (-1, 1, -1), (5, 1, 6)),
        ((0, 4), (-1, 4), (-1, 2, 2), (0, 2, 2)),
    ],
)
def test_reshaped(shape, given, wanted, result):
    assert reshaped(shape, given, wanted) == result
