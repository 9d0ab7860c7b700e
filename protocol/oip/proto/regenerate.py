"""Write `inference.binpb` out of the descriptors that the installed tritonclient carries.

    python protocol/oip/proto/regenerate.py            write the file
    python protocol/oip/proto/regenerate.py --check    compare only; exit status 1 on a difference

The one program of the project that imports tritonclient's generated modules; never import it.
"""

import sys
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_name("inference.binpb")


def descriptor_set() -> bytes:
    """A serialized FileDescriptorSet of grpc_service.proto and all that it imports, dependencies first."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from tritonclient.grpc import model_config_pb2, service_pb2

    result = FileDescriptorSet()
    seen: set[str] = set()

    def add(descriptor: Any) -> None:
        if descriptor.name in seen:
            return
        seen.add(descriptor.name)
        for dependency in descriptor.dependencies:
            add(dependency)
        descriptor.CopyToProto(result.file.add())

    add(model_config_pb2.DESCRIPTOR)
    add(service_pb2.DESCRIPTOR)
    return result.SerializeToString(deterministic=True)


def main(arguments: list[str]) -> int:
    """Write or compare; the exit status."""
    fresh = descriptor_set()
    if arguments == ["--check"]:
        same = TARGET.is_file() and TARGET.read_bytes() == fresh
        print(f"{TARGET.name} {'is up to date' if same else 'differs from the installed tritonclient: run make proto'}")
        return 0 if same else 1
    if arguments:
        print(__doc__, file=sys.stderr)
        return 2
    TARGET.write_bytes(fresh)
    print(f"wrote {TARGET.name}, {len(fresh)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
