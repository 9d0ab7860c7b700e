"""The descriptor set: fresh, private, and free of generated modules."""

import subprocess
import sys
from pathlib import Path

import pytest

import oip.proto

REGENERATE = Path(oip.proto.__file__).with_name("regenerate.py")


def test_the_file_is_what_the_installed_tritonclient_gives():
    pytest.importorskip("tritonclient")
    # a process of its own: kserve's messages of the same package may be loaded in this one
    result = subprocess.run([sys.executable, REGENERATE, "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_regenerate_refuses_an_argument_it_does_not_know():
    result = subprocess.run([sys.executable, REGENERATE, "--chek"], capture_output=True, text=True)
    assert result.returncode == 2


def test_messages_live_beside_foreign_ones_of_the_same_package():
    pytest.importorskip("tritonclient")
    script = (
        "import oip.proto, sys\n"
        "assert not any('tritonclient' in name or 'kserve' in name for name in sys.modules)\n"
        "from tritonclient.grpc import model_config_pb2\n"
        "assert oip.proto.ModelConfig(name='a').name == model_config_pb2.ModelConfig(name='a').name\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_message_class_finds_nested_messages_and_the_service_s():
    assert oip.proto.message_class("ModelWarmup.Input")(dims=[1, 2]).dims == [1, 2]
    assert oip.proto.message_class("ModelInferRequest")(id="7").id == "7"
    with pytest.raises(KeyError):
        oip.proto.message_class("Nothing")
