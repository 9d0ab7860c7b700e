"""The protobuf messages of Triton's `package inference`, in a descriptor pool of their own.

Generated modules register in the process-wide pool, and two that both declare `package inference`
(kserve's and tritonclient's) cannot live in one process.  This package therefore reads the descriptors
from the file `inference.binpb` (see `regenerate.py` and `NOTICE`) into a private pool, and never
imports a generated module.
"""

from functools import cache
from importlib import resources
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool

PACKAGE = "inference"


def files() -> list[FileDescriptorProto]:
    """The descriptors of the package's files, each behind those that it depends on."""
    return list(FileDescriptorSet.FromString((resources.files(__name__) / "inference.binpb").read_bytes()).file)


@cache
def _pool() -> DescriptorPool:
    pool = DescriptorPool()
    for file in files():
        pool.Add(file)
    return pool


@cache
def message_class(name: str) -> Any:
    """The message class of that name, such as "ModelConfig" or "ModelWarmup.Input".

    Typed `Any`: mypy knows nothing of a class that is made from a descriptor.

    Raises:
        KeyError: the package has no such message.
    """
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{PACKAGE}.{name}"))


ModelConfig: Any = message_class("ModelConfig")
