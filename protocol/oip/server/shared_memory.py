"""System shared memory: regions that clients register by key, and the bytes in them.

Knows `/dev/shm` and no transport.  A key is one name in that folder, opened without following links; messages
never hold it.  A region whose owner is this process's user is mapped.  Any other is read and written through its
file, a copy each time: its owner could shrink it, and touching a mapped page that is gone kills the process.

A mapping lives as long as views on it do, so a request that uses a region still finishes after the region was
unregistered.

Source: Triton's extension_shared_memory and its shared_memory_manager.
"""

import fcntl
import mmap
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from oip.errors import InvalidArgument, NotFound
from oip.regions import RegionRange
from oip.server.extensions import SharedMemoryRegion

FOLDER = Path("/dev/shm")  # noqa: S108 - this is where POSIX shared memory is, no temporary file of ours
MAX_REGIONS = 1024
MAX_NAME = 256

_KEY = re.compile(r"/?[^/\x00]{1,255}")
_RESERVED = "triton_python_backend_shm_region_"


class _Region:
    """One registered range of a shared memory object."""

    def __init__(self, file: int, offset: int, byte_size: int) -> None:
        """Takes the file descriptor over."""
        self.offset = offset
        self.byte_size = byte_size
        self._file = file
        self._map: mmap.mmap | None = None
        self.writable = _is_writable(file)
        if os.fstat(file).st_uid == os.geteuid():
            access = mmap.ACCESS_WRITE if self.writable else mmap.ACCESS_COPY
            self._map = mmap.mmap(file, offset + byte_size, access=access)
            self._view = memoryview(self._map)[offset : offset + byte_size]

    def __del__(self) -> None:
        os.close(self._file)

    def read(self, place: RegionRange) -> memoryview:
        if self._map is not None:
            return self._view[place.offset : place.offset + place.byte_size]
        content = bytearray(place.byte_size)
        got = os.preadv(self._file, [content], self.offset + place.offset)
        if got != place.byte_size:
            raise InvalidArgument(f"shared memory region '{place.region}' has become shorter than it was registered")
        return memoryview(content)

    def write(self, place: RegionRange, content: bytes | bytearray | memoryview) -> None:
        if self._map is not None:
            self._view[place.offset : place.offset + len(content)] = content
        else:
            os.pwrite(self._file, content, self.offset + place.offset)


class SystemSharedMemory:
    """Implements `extensions.SharedMemory`."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._regions: dict[str, _Region] = {}

    def status(self, name: str = "") -> list[SharedMemoryRegion]:
        """See `SharedMemory.status`."""
        names = [name] if name else sorted(self._regions)
        return [
            SharedMemoryRegion(each, region.offset, region.byte_size)
            for each, region in [(each, self._region(each, missing=NotFound)) for each in names]
        ]

    def register(self, name: str, key: str, byte_size: int, offset: int = 0) -> None:
        """See `SharedMemory.register`."""
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise InvalidArgument(f"a shared memory region's name is 1 to {MAX_NAME} printable characters")
        if name.startswith(_RESERVED):
            raise InvalidArgument(
                f"shared memory region names that begin with '{_RESERVED}' are reserved; choose another"
            )
        if name in self._regions:
            raise InvalidArgument(f"shared memory region '{name}' already in manager; unregister it first")
        if len(self._regions) >= MAX_REGIONS:
            raise InvalidArgument(f"{MAX_REGIONS} shared memory regions are registered, the limit; unregister some")
        check_range(name, offset, byte_size)
        file = self._open(name, key)
        try:
            size = os.fstat(file).st_size
            if offset + byte_size > size:
                raise InvalidArgument(
                    f"shared memory region '{name}' is to be {byte_size} bytes from offset {offset}, but the shared "
                    f"memory object has {size}"
                )
            region = _Region(os.dup(file), offset, byte_size)
        except (OSError, ValueError, OverflowError):
            raise InvalidArgument(f"shared memory region '{name}' cannot be mapped; check its size") from None
        finally:
            os.close(file)
        self._regions[name] = region

    def unregister(self, name: str = "") -> None:
        """See `SharedMemory.unregister`."""
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def read(self, place: RegionRange) -> memoryview:
        """See `SharedMemory.read`."""
        return self._checked(place).read(place)

    def check(self, place: RegionRange) -> None:
        """See `SharedMemory.check`."""
        if not self._checked(place).writable:
            raise InvalidArgument(f"shared memory region '{place.region}' may not be written by this server")

    def write(self, place: RegionRange, content: bytes | bytearray | memoryview) -> None:
        """See `SharedMemory.write`."""
        self._checked(RegionRange(place.region, place.offset, len(content))).write(place, content)

    def _region(self, name: str, missing: type[InvalidArgument] | type[NotFound]) -> _Region:
        region = self._regions.get(name)
        if region is None:
            raise missing(f"Unable to find shared memory region: '{name[:MAX_NAME]}'; register it first")
        return region

    def _checked(self, place: RegionRange) -> _Region:
        region = self._region(place.region, missing=InvalidArgument)
        if place.offset + place.byte_size > region.byte_size:
            raise InvalidArgument(
                f"Invalid offset + byte size for shared memory region: '{place.region}': {place.offset} + "
                f"{place.byte_size} is more than its {region.byte_size} bytes"
            )
        return region

    def _open(self, name: str, key: str) -> int:
        """A descriptor of the object behind a key.  What exactly is wrong with a key is nobody's business outside."""
        refusal = InvalidArgument(
            f"Unable to open shared memory region: '{name}': its key must name a shared memory object that this "
            "server may open"
        )
        if not _KEY.fullmatch(key) or key.strip("/") in (".", ".."):
            raise refusal
        path = self._folder / key.removeprefix("/")
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        for access in (os.O_RDWR, os.O_RDONLY):
            with suppress(OSError, ValueError):
                file = os.open(path, access | flags)
                if stat.S_ISREG(os.fstat(file).st_mode):
                    return file
                os.close(file)
        raise refusal


def check_range(name: str, offset: int, byte_size: int) -> None:
    """
    Raises:
        InvalidArgument: no object could have that range.
    """
    for what, value, least in (("offset", offset, 0), ("byte_size", byte_size, 1)):
        if not least <= value < 2**62:
            raise InvalidArgument(f"shared memory region '{name}': '{what}' must be from {least} to 2^62, got {value}")


def _is_writable(file: int) -> bool:
    return fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
