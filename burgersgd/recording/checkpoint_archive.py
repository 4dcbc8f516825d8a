"""Encodes checkpoints as files that `torch.load(weights_only=True)` reads, much faster than `torch.save`.

The format is that of `torch.save`: an uncompressed zip archive of a pickle, data.pkl, and of the memory of each tensor,
data/0, data/1 and so on, each aligned to 64 bytes. torch.save calls Python for every single value of the pickle, which
takes a large share of the time of a sweep of short runs. Here one pass over the values makes the pickle and the digest,
and the entries that all runs of a fleet have in common are encoded once. The pickle has no memo, so it repeats values
to which that of torch.save refers, and the archive stores the sizes of its members before their contents, not after.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import sys
import zlib
from collections.abc import Mapping
from typing import Any

ALIGNMENT = 64
LARGEST = 1 << 31
"""Size in bytes from which an archive would need the 64-bit fields of the zip format; torch writes such archives."""

Buffer = bytes | memoryview


class UnusualError(ValueError):
    """The state holds a value that only torch can save, or one that a checkpoint must not hold."""


class Encoded:
    """The entries of a dict as opcodes of a pickle and as pieces of the digest, with the memory of their tensors."""

    def __init__(self, entries: Mapping[str, Any], shared: Encoded | None = None) -> None:
        """Encode the entries. shared: further entries, already encoded, which are appended.

        Raises UnusualError, or UnicodeEncodeError for text that UTF-8 cannot represent.
        """
        self.n = len(entries)
        self.pickled: list[bytes] = []
        self.digested: list[Buffer] = []
        self.storages: list[Buffer] = [] if shared is None else [*shared.storages]
        for key, value in entries.items():
            self._add(key)
            self._add(value)
        if shared is not None:
            self.n += shared.n
            self.pickled += shared.pickled
            self.digested += shared.digested

    def digest(self) -> str:
        """Return the digest of the dict, the same as files.digest returns."""
        sha = hashlib.sha256(b"{%d" % self.n)
        for piece in self.digested:
            sha.update(piece)
        return sha.hexdigest()[:32]

    def _add(self, value: Any) -> None:
        kind = type(value)
        if kind is str:
            leaf = _text(value)
        elif kind is int:
            leaf = _integer(value)
        elif kind is dict:
            self.digested.append(b"{%d" % len(value))
            self.pickled.append(b"}(")
            for key, entry in value.items():
                if type(key) is not str and type(key) is not int:
                    raise UnusualError
                self._add(key)
                self._add(entry)
            self.pickled.append(b"u")
            return
        elif kind is list:
            self.digested.append(b"[%d" % len(value))
            self.pickled.append(b"](")
            for entry in value:
                self._add(entry)
            self.pickled.append(b"e")
            return
        elif kind is float:
            leaf = b"G" + struct.pack(">d", value), _digested("float", repr(value))
        elif value is None or kind is bool:
            leaf = _CONSTANTS[value]
        else:
            self._add_tensor(value)
            return
        self.pickled.append(leaf[0])
        self.digested.append(leaf[1])

    def _add_tensor(self, value: Any) -> None:
        import torch

        if type(value) is not torch.Tensor or value.layout != torch.strided or value.device.type != "cpu":
            raise UnusualError
        before, after, described = _tensor_pickle(value.dtype, tuple(value.shape))
        memory = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        self.pickled += (before, _text(str(len(self.storages)))[0], after)
        self.digested += (described, memory)
        self.storages.append(memory)


def archive(entries: Encoded, head: Mapping[str, str | int]) -> list[Buffer]:
    """Return the file of a dict that holds head and the entries, in pieces.

    Raises UnusualError where the file would be larger than LARGEST.
    """
    first = Encoded(head)
    pickled = b"".join([b"\x80\x02}(", *first.pickled, *entries.pickled, b"u."])
    members: list[tuple[str, Buffer]] = [("data.pkl", pickled), (".format_version", b"1")]
    members += [(".storage_alignment", b"%d" % ALIGNMENT), ("byteorder", sys.byteorder.encode())]
    members += [(f"data/{i}", memory) for i, memory in enumerate(entries.storages)]
    members += [("version", b"3\n"), (".data/serialization_id", _identifier(pickled))]
    if sum(len(content) + 256 for _, content in members) >= LARGEST:
        raise UnusualError
    pieces: list[Buffer] = []
    directory: list[bytes] = []
    at = 0
    for name, content in members:
        path = b"archive/" + name.encode()
        padding = -(at + 34 + len(path)) % ALIGNMENT
        extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        about = struct.pack("<5HLLLH", *_ABOUT, zlib.crc32(content), len(content), len(content), len(path))
        pieces += (b"PK\x03\x04" + about + struct.pack("<H", len(extra)) + path + extra, content)
        directory.append(b"PK\x01\x02\x14\x00" + about + struct.pack("<4H2L", 0, 0, 0, 0, 0, at) + path)
        at += 30 + len(path) + len(extra) + len(content)
    listed = b"".join(directory)
    end = struct.pack("<4s4HLLH", b"PK\x05\x06", 0, 0, len(members), len(members), len(listed), at, 0)
    return [*pieces, listed, end]


_ABOUT = (20, 0x0800, 0, 0, 0x21)
"""Constant header fields of a zip member: version needed, flags (UTF-8 names), no compression, time 0, 1980-01-01."""


def _identifier(pickled: bytes) -> bytes:
    """Return 40 decimal digits that identify the content."""
    return b"%040d" % (int.from_bytes(hashlib.sha256(pickled).digest()) % 10**40)


def _digested(kind: str, text: str) -> bytes:
    encoded = text.encode()
    return b"%s%d:%s" % (kind.encode(), len(encoded), encoded)


@functools.lru_cache(maxsize=4096)
def _text(value: str) -> tuple[bytes, bytes]:
    encoded = value.encode()
    return b"X" + struct.pack("<L", len(encoded)) + encoded, _digested("str", repr(value))


@functools.lru_cache(maxsize=4096)
def _integer(value: int) -> tuple[bytes, bytes]:
    if 0 <= value < 1 << 8:
        pickled = b"K" + struct.pack("<B", value)
    elif -(1 << 31) <= value < 1 << 31:
        pickled = b"J" + struct.pack("<l", value)
    else:
        size = value.bit_length() // 8 + 1
        if size > 255:
            raise UnusualError
        pickled = b"\x8a" + struct.pack("<B", size) + value.to_bytes(size, "little", signed=True)
    return pickled, _digested("int", repr(value))


_CONSTANTS: dict[bool | None, tuple[bytes, bytes]] = {
    None: (b"N", _digested("NoneType", "None")),
    True: (b"\x88", _digested("bool", "True")),
    False: (b"\x89", _digested("bool", "False")),
}


@functools.lru_cache(maxsize=1024)
def _tensor_pickle(dtype: Any, shape: tuple[int, ...]) -> tuple[bytes, bytes, bytes]:
    """Return the pickle of a tensor before and after the name of its memory, and the tensor's header in the digest."""
    import torch

    kinds = {
        torch.float32: "Float",
        torch.float64: "Double",
        torch.float16: "Half",
        torch.bfloat16: "BFloat16",
        torch.int64: "Long",
        torch.int32: "Int",
        torch.int16: "Short",
        torch.int8: "Char",
        torch.uint8: "Byte",
        torch.bool: "Bool",
    }
    if dtype not in kinds:
        raise UnusualError
    storage = f"ctorch\n{kinds[dtype]}Storage\n".encode()
    before = b"ctorch._utils\n_rebuild_tensor_v2\n((" + _text("storage")[0] + storage
    empty = torch.empty(shape, dtype=dtype, device="meta")
    after = _text("cpu")[0] + _integer(empty.numel())[0] + b"tQK\x00" + _tuple(shape) + _tuple(empty.stride())
    after += b"\x89ccollections\nOrderedDict\n)RtR"
    return before, after, f"t{dtype}{list(shape)}".encode()


def _tuple(numbers: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(_integer(number)[0] for number in numbers) + b"t"
