"""Writes a ZIP archive as a stream, an entry after the other, in memory that does not grow with what is in it.

Source: PKWARE APPNOTE 6.3.10. Every entry is deflated and has one form: name in UTF-8, no date (1980-01-01), sizes in 64 bits after
its data (ZIP64), mode 0644. So equal contents give equal bytes, no byte of an archive is without meaning, and verify.py can refuse
every other form. Knows: this form. Does not know: what is in the entries. What grows is the directory at the end: some 130 bytes an
entry.
"""

import struct
import zlib
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

VERSION: Final = 45
"""4.5: ZIP64."""
FLAGS: Final = 0x0808
"""Sizes and checksum come after the data; the name is UTF-8."""
_DEFLATED: Final = 8
_DATE: Final = 0x0021
_IN_ZIP64: Final = 0xFFFFFFFF
_MODE: Final = 0o100644 << 16
_MADE_BY: Final = 3 << 8 | VERSION
_LEVEL: Final = 6


@dataclass(frozen=True, slots=True)
class Entry:
    """What was written under a name. `digest`: SHA-256 of the contents, hexadecimal; `size`: their bytes."""

    name: str
    digest: str
    size: int


class ZipStream:
    """An archive that is being written: `begin`, `write`, `end` for each entry, `finish` once; `take` what has come out."""

    def __init__(self) -> None:
        self._out = bytearray()
        self._offset = 0
        self._directory = bytearray()
        self._count = 0
        self._name = ""

    def begin(self, name: str) -> None:
        """Start an entry."""
        self._name = name
        self._start = self._offset
        self._crc, self._size, self._digest = 0, 0, sha256()
        self._deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        encoded = name.encode()
        sizes = struct.pack("<HHQQ", 1, 16, 0, 0)
        self._emit(
            struct.pack(
                "<4s5H3L2H", b"PK\x03\x04", VERSION, FLAGS, _DEFLATED, 0, _DATE, 0, _IN_ZIP64, _IN_ZIP64, len(encoded), len(sizes)
            )
            + encoded
            + sizes
        )
        self._data_start = self._offset

    def write(self, data: bytes) -> None:
        """Add to the entry."""
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)
        self._digest.update(data)
        self._emit(self._deflate.compress(data))

    def end(self) -> Entry:
        """Finish the entry."""
        self._emit(self._deflate.flush())
        packed = self._offset - self._data_start
        self._emit(struct.pack("<4sLQQ", b"PK\x07\x08", self._crc, packed, self._size))
        encoded = self._name.encode()
        extra = struct.pack("<HHQQQ", 1, 24, self._size, packed, self._start)
        fixed = (b"PK\x01\x02", _MADE_BY, VERSION, FLAGS, _DEFLATED, 0, _DATE, self._crc, _IN_ZIP64, _IN_ZIP64)
        self._directory += struct.pack("<4s6H3L5H2L", *fixed, len(encoded), len(extra), 0, 0, 0, _MODE, _IN_ZIP64) + encoded + extra
        self._count += 1
        return Entry(self._name, self._digest.hexdigest(), self._size)

    def add(self, name: str, data: bytes) -> Entry:
        """Write a whole entry."""
        self.begin(name)
        self.write(data)
        return self.end()

    def finish(self) -> None:
        """Write the directory."""
        begin, size = self._offset, len(self._directory)
        self._emit(self._directory)
        end = self._offset
        self._emit(struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, _MADE_BY, VERSION, 0, 0, self._count, self._count, size, begin))
        self._emit(struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1))
        self._emit(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, _IN_ZIP64, _IN_ZIP64, 0))

    @property
    def waiting(self) -> int:
        """Bytes that have not been taken."""
        return len(self._out)

    def take(self) -> bytes:
        """Return the bytes that came out since the last time."""
        taken = bytes(self._out)
        self._out.clear()
        return taken

    def _emit(self, data: bytes | bytearray) -> None:
        self._out += data
        self._offset += len(data)
