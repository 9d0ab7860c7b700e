"""The JSON of a configuration, as Triton's extension gives it."""

import json

from torchscript_predictor.config_json import config_json
from torchscript_predictor.model_config import parse_model_config

TEXT = """
platform: "pytorch_libtorch"
max_batch_size: 1
input [ { name: "INPUT__0" data_type: TYPE_FP32 dims: [3,32,32] reshape { shape: [ 3072 ] } } ]
output [ { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [10] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
parameters { key: "B" value { string_value: "2" } }
parameters { key: "A" value { string_value: "1" } }
"""


def test_triton_s_normalised_form():
    config = config_json(parse_model_config(TEXT, "cifar10").message)
    assert json.loads(json.dumps(config)) == {
        "name": "cifar10",
        "platform": "pytorch_libtorch",
        "backend": "pytorch",
        "runtime": "",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": 1,
        "input": [
            {
                "name": "INPUT__0",
                "data_type": "TYPE_FP32",
                "format": "FORMAT_NONE",
                "dims": [3, 32, 32],
                "reshape": {"shape": [3072]},
                "is_shape_tensor": False,
                "allow_ragged_batch": False,
                "optional": False,
                "is_non_linear_format_io": False,
            }
        ],
        "output": [
            {
                "name": "OUTPUT__0",
                "data_type": "TYPE_FP32",
                "dims": [10],
                "label_filename": "",
                "is_shape_tensor": False,
                "is_non_linear_format_io": False,
            }
        ],
        "batch_input": [],
        "batch_output": [],
        "optimization": {
            "priority": "PRIORITY_DEFAULT",
            "input_pinned_memory": {"enable": True},
            "output_pinned_memory": {"enable": True},
            "gather_kernel_buffer_threshold": 0,
            "eager_batching": False,
        },
        "instance_group": [
            {
                "name": "cifar10_0",
                "kind": "KIND_CPU",
                "count": 1,
                "gpus": [],
                "secondary_devices": [],
                "profile": [],
                "passive": False,
                "host_policy": "",
            }
        ],
        "default_model_filename": "model.pt",
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {"A": {"string_value": "1"}, "B": {"string_value": "2"}},
        "model_warmup": [],
    }
