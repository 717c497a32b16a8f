"""Read what hf_xet wrote into a `local://` store: which files there are (shards), and their bytes (xorbs).

A shard is a 48-byte header, then for every file a header of 48 bytes {hash 32, flags u32, n u32, u64}, n entries of 48
bytes {xorb hash 32, flags u32, bytes u32, first chunk u32, last chunk u32}, n more of 48 bytes if flag bit 31 is set,
and one of 48 bytes if bit 30 is set, whose first 32 are the sha256; a hash of 0xff bytes ends the list. A xorb is a row
of chunks, each behind 8 bytes {version u8, packed size u24, scheme u8, size u24}.
"""

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

from loopback_hub.wire import RefusalError

__all__ = ["XetFile", "XetStore"]


@dataclass(frozen=True)
class XetFile:
    """xet_hash: as the header X-Xet-Hash tells it.  segments: (xorb hash, first chunk, end chunk)."""

    sha256: str
    xet_hash: str
    size: int
    segments: tuple[tuple[str, int, int], ...]


class XetStore:
    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._seen: set[Path] = set()
        self._files: dict[str, XetFile] = {}

    @property
    def url(self) -> str:
        return f"local://{self.folder}"

    def find(self, sha256: str) -> XetFile | None:
        if sha256 not in self._files:
            for path in sorted(self.folder.rglob("*.mdb")):
                if path not in self._seen and "cache" not in path.parent.name:
                    self._seen.add(path)
                    self._files.update({file.sha256: file for file in _read_shard(path.read_bytes())})
        return self._files.get(sha256)

    def read(self, file: XetFile) -> bytes:
        data = b"".join(self._segment(*segment) for segment in file.segments)
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise RefusalError(500, f"the Xet store does not hold the bytes of {file.sha256}")
        return data

    def _segment(self, xorb: str, first: int, end: int) -> bytes:
        path = next(iter(self.folder.rglob(f"default.{xorb}")), None)
        if path is None:
            raise RefusalError(500, f"the Xet store lacks the xorb {xorb}")
        return b"".join(_chunks(path.read_bytes(), first, end))


def _hex(digest: bytes) -> str:
    """Xet prints its hashes as four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))


def _read_shard(data: bytes) -> list[XetFile]:
    files, at = [], 48
    while data[at : at + 32] != b"\xff" * 32:
        digest, (flags, count) = data[at : at + 32], struct.unpack_from("<II", data, at + 32)
        at += 48
        entries = [
            (data[a : a + 32], *struct.unpack_from("<IIII", data, a + 32)) for a in range(at, at + 48 * count, 48)
        ]
        at += 48 * count * (2 if flags & 1 << 31 else 1)
        if flags & 1 << 30:
            segments = tuple((_hex(xorb), first, end) for xorb, _, _, first, end in entries)
            files.append(XetFile(_hex(data[at : at + 32]), _hex(digest), sum(e[2] for e in entries), segments))
            at += 48
    return files


def _chunks(xorb: bytes, first: int, end: int):
    at = 0
    for index in range(end):
        packed, scheme, size = _u24(xorb, at + 1), xorb[at + 4], _u24(xorb, at + 5)
        at += 8
        if index >= first:
            yield _unpack(xorb[at : at + packed], scheme, size)
        at += packed


def _u24(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little")


def _unpack(data: bytes, scheme: int, size: int) -> bytes:
    """scheme 0: as it is; 1: LZ4 frame; 2: LZ4 frame of bytes grouped by their place modulo 4."""
    if scheme == 0:
        return data
    flat = _lz4_frame(data)
    if scheme == 2:
        plain, at = bytearray(len(flat)), 0
        for group in range(4):
            count = (len(flat) + 3 - group) // 4
            plain[group::4] = flat[at : at + count]
            at += count
        flat = plain
    if len(flat) != size:
        raise RefusalError(500, f"a chunk of the Xet store (scheme {scheme}) has {len(flat)} bytes instead of {size}")
    return bytes(flat)


def _lz4_frame(data: bytes) -> bytearray:
    if data[:4] != b"\x04\x22\x4d\x18":
        raise RefusalError(500, "a chunk of the Xet store is no LZ4 frame")
    flags = data[4]
    at = 7 + (8 if flags & 8 else 0) + (4 if flags & 1 else 0)
    out = bytearray()
    while size := int.from_bytes(data[at : at + 4], "little"):
        at, length = at + 4, size & 0x7FFFFFFF
        if size >> 31:
            out += data[at : at + length]
        else:
            _lz4_block(data[at : at + length], out)
        at += length + (4 if flags & 16 else 0)
    return out


def _lz4_block(data: bytes, out: bytearray) -> None:
    at, end = 0, len(data)
    while at < end:
        token = data[at]
        literals, at = _length(token >> 4, data, at + 1)
        out += data[at : at + literals]
        at += literals
        if at >= end:
            return
        distance = data[at] | data[at + 1] << 8
        length, at = _length(token & 15, data, at + 2)
        length += 4
        start = len(out) - distance
        piece = out[start : start + length]
        out += piece if len(piece) == length else (piece * (length // distance + 1))[:length]


def _length(nibble: int, data: bytes, at: int) -> tuple[int, int]:
    if nibble == 15:
        while True:
            more = data[at]
            nibble, at = nibble + more, at + 1
            if more != 255:
                break
    return nibble, at
