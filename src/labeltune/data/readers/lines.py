"""A text file as numbered lines: decompressed, strictly UTF-8, never held whole."""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

import zstandard

from labeltune.errors import DataError, nearest

LONGEST = 64 * 1024 * 1024
"""Bytes in one line; more is no text file of rows, and of a text is read in parts."""

COMPRESSIONS = {".gz": b"\x1f\x8b", ".xz": b"\xfd7zXZ\x00", ".zst": b"\x28\xb5\x2f\xfd"}
"""Suffix -> the bytes such a file begins with."""

BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BOM = b"\xef\xbb\xbf"


def uncompressed_name(path: Path) -> str:
    """The file's name without a compression suffix."""
    return path.stem if path.suffix.lower() in COMPRESSIONS else path.name


def open_bytes(path: Path, name: str) -> BinaryIO:
    """The file's bytes, decompressed by what its first bytes say.

    Raises:
        DataError: there is no such file, it cannot be read, or its suffix promises a compression that it has not.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise no_such(path) from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", at=name) from None
    head = file.peek(6)[:6]
    kind = next((suffix for suffix, magic in COMPRESSIONS.items() if head.startswith(magic)), None)
    promised = path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else None
    if promised and promised != kind:
        file.close()
        raise DataError(f"is no {promised[1:]} file", at=name, hint="it may be cut off, or not compressed: rename it")
    return _decompressed(file, kind)


def no_such(path: Path) -> DataError:
    """The error for a path that is not there, with the nearest neighbour as a way out."""
    folder = path.parent
    beside = sorted(child.name for child in folder.iterdir())[:1000] if folder.is_dir() else []
    hint = nearest(path.name, beside)
    short = beside and len(hint) < 300
    return DataError("there is no such file or folder", at=str(path), hint=hint if short else "check the path")


def _decompressed(file: BinaryIO, kind: str | None) -> BinaryIO:
    match kind:
        case ".gz":
            return _Owned(gzip.GzipFile(fileobj=file), file)
        case ".xz":
            return _Owned(lzma.LZMAFile(file), file)
        case ".zst":
            return _Owned(_Zstandard(file), file)
    return file


class _Owned(io.BufferedReader):
    """A decompressing stream that closes the file beneath it."""

    def __init__(self, stream: gzip.GzipFile | lzma.LZMAFile | _Zstandard, file: BinaryIO) -> None:
        super().__init__(cast(io.RawIOBase, stream), 1 << 17)
        self._file = file

    def close(self) -> None:
        super().close()
        self._file.close()


class _Zstandard(io.RawIOBase):
    """Zstandard frames as a stream; the library's own reader takes a cut-off file for a whole one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._out, self._frame = file, b"", _frame()
        self._begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # the stub's Buffer type is Python 3.12's
        while not self._out and self._more():
            pass
        size = min(len(buffer), len(self._out))
        buffer[:size], self._out = self._out[:size], self._out[size:]
        return size

    def _more(self) -> bool:
        chunk = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame, self._begun = _frame(), False
        chunk = chunk or self._file.read(1 << 13)
        if not chunk and self._begun:
            raise EOFError("the file ends inside a frame")
        self._begun = self._begun or bool(chunk)
        self._out = self._frame.decompress(chunk) if chunk else b""
        return bool(chunk)


def _frame() -> zstandard.ZstdDecompressionObj:
    return zstandard.ZstdDecompressor().decompressobj()


class Lines(Iterator[str]):
    """The lines of a file with their line ends. `number` is the last line's, counted from 1.

    A line that is not UTF-8 comes with its bytes escaped, and `take_fault` says which byte it was.
    divide: give a line of more than `LONGEST` bytes in parts, cut behind a space where there is one, under one number.
    """

    def __init__(self, path: Path, name: str, *, divide: bool = False) -> None:
        self.name, self.number = name, 0
        self._divide, self._rest, self._ended = divide, b"", True
        self._fault: DataError | None = None
        self._file = open_bytes(path, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    @property
    def at(self) -> str:
        """The address of the last line."""
        return f"{self.name}:{self.number}"

    def __next__(self) -> str:
        line = self._read()
        if not line:
            raise StopIteration
        self.number += self._ended
        if self.number == 1 and self._ended:
            line = self._without_bom(line)
        self._ended = line.endswith(b"\n")
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            self._fault = self._fault or _undecodable(error, self.at)
            return line.decode(errors="backslashreplace")

    def take_fault(self) -> DataError | None:
        """What was wrong with the lines read since this was last asked."""
        fault, self._fault = self._fault, None
        return fault

    def _read(self) -> bytes:
        try:
            line = self._rest + self._file.readline(LONGEST + 1 - len(self._rest))
        except BROKEN as error:
            raise _unreadable(error, self.name, self.number) from None
        line, self._rest = _divided(line) if self._divide and len(line) > LONGEST else (line, b"")
        if len(line) > LONGEST:
            hint = "rows stand on lines of their own; is this another format?"
            raise DataError("this line is longer than 64 MiB", at=f"{self.name}:{self.number + 1}", hint=hint)
        return line

    def _without_bom(self, line: bytes) -> bytes:
        if line.startswith(_UTF16):
            raise _utf16(self.name)
        return line.removeprefix(_BOM)


def _divided(line: bytes) -> tuple[bytes, bytes]:
    """Too many bytes of a line in two parts, cut behind the last space, or else between two characters."""
    end = line.rfind(b" ", 0, -1) + 1 or len(line) - 1
    while end > 1 and line[end] & 0xC0 == 0x80:  # inside a character
        end -= 1
    return line[:end], line[end:]


def read_whole(path: Path, at: str) -> tuple[str, DataError | None]:
    """The text of a small file, and what is wrong with it."""
    with open_bytes(path, at) as file:
        content = read_bytes(file, LONGEST + 1, at)
    if len(content) > LONGEST:
        return "", DataError("this text is longer than 64 MiB", at=at, hint="is this another format?")
    if content.startswith(_UTF16):
        return "", _utf16(at)
    try:
        return content.removeprefix(_BOM).decode(), None
    except UnicodeDecodeError as error:
        return content.decode(errors="backslashreplace"), _undecodable(error, at)


def _undecodable(error: UnicodeDecodeError, at: str) -> DataError:
    byte = error.object[error.start]
    hint = "save the file as UTF-8 (for example iconv -f WINDOWS-1252 -t UTF-8)"
    return DataError(f"byte {error.start + 1} (0x{byte:02x}) is not UTF-8", at=at, hint=hint)


def _utf16(at: str) -> DataError:
    return DataError("this file is UTF-16", at=at, hint="save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")


def read_bytes(file: BinaryIO, size: int, name: str) -> bytes:
    """Up to `size` bytes; a DataError where the compressed data or the disk gives none."""
    try:
        return file.read(size)
    except BROKEN as error:
        raise _unreadable(error, name, 0) from None


def _unreadable(error: BaseException, name: str, line: int) -> DataError:
    after = f" after line {line}" if line else ""
    hint = "the file is cut off or damaged: copy or download it again"
    return DataError(f"the data cannot be read{after} ({error})", at=name, hint=hint)
