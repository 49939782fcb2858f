"""Put files and folders on disk whole or not at all: a kill at any moment leaves the old content or the new one.

A file is written beside its place as `.name.partial`, flushed to the disk, then renamed over the old one. A folder goes
the same way, with the old one moved to `.name.old` for the moment of the swap; `settle` finishes a swap that a kill cut
in two. One writer at a time: the `lock` of the run folder sees to that.
"""

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from filelock import FileLock, Timeout

from labeltune.errors import RunError

LOCK_NAME = ".lock"
HOLDER_NAME = ".lock.pid"  # beside the lock: opening a lock file to try it may empty it

# What the user can mend, and how, as far as this system knows it; any other OSError is a bug of ours and keeps its
# traceback.
_LOCKS = "this file system lacks what is needed (locks, say): choose a place on another"
_ELSEWHERE, _SPACE, _RIGHTS = "choose another place", "free some space", "choose a place that you may write to"
_FIXABLE = {
    "EACCES": _RIGHTS,
    "EDQUOT": _SPACE,
    "EEXIST": _ELSEWHERE,
    "EFBIG": _SPACE,
    "EIO": "the disk may be damaged: choose another",
    "EISDIR": _ELSEWHERE,
    "ENAMETOOLONG": "choose a shorter name",
    "ENOENT": _ELSEWHERE,
    "ENOLCK": _LOCKS,
    "ENOSPC": _SPACE,
    "ENOTDIR": _ELSEWHERE,
    "ENOTSUP": _LOCKS,
    "EOPNOTSUPP": _LOCKS,
    "EPERM": _RIGHTS,
    "EROFS": _RIGHTS,
}


_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}  # file systems that cannot be asked for a folder's names


# Files


def write_atomic(path: Path, content: bytes | str) -> None:
    """Make `path` hold exactly `content` (text as UTF-8, line ends untouched); parent folders are made."""
    data = content.encode() if isinstance(content, str) else content
    with atomic_file(path) as partial:
        partial.write_bytes(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; it becomes `path` when the block ends, and vanishes when the block raises.

    A link is followed, so it stays a link; a device or a pipe (`/dev/null`) is written to as it is, never replaced.
    """
    with told(path):
        if is_special(path):  # asked before links are followed: that of an open pipe names no file
            yield path
            return
    path = Path(os.path.realpath(path))
    with told(path):
        partial = _beside(path, "partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            _sync(partial)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync(path.parent)


def is_special(path: Path) -> bool:
    """Whether a device or a pipe is there."""
    return path.exists() and not path.is_file() and not path.is_dir()


def refuse_file(path: Path) -> None:
    """Raise where a file or folder is in the way of what a user wants written; a device or a pipe is not.

    Raises:
        RunError: `path` is already there.
    """
    with told(path):
        taken = path.is_file() or path.is_dir()
    if taken:
        raise RunError("is already there", at=str(path), hint="nothing was written; choose another place")


# Folders


@contextmanager
def atomic_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give an empty folder to fill; it becomes `folder` when the block ends, and vanishes when the block raises.

    Raises:
        RunError: `folder` is already there, unless `replace`.
    """
    with told(folder):
        settle(folder)
        if folder.exists() and not (replace and folder.is_dir()):
            raise RunError("is already there", at=str(folder), hint="nothing was written; choose another place")
        partial = _beside(folder, "partial")
        partial.mkdir(parents=True)
        try:
            yield partial
            _sync_tree(partial)
        except BaseException:
            shutil.rmtree(partial)
            raise
        _swap(partial, folder)


def settle(folder: Path) -> None:
    """Finish the swap of `folder` that a kill cut in two, and drop an unfinished write. Call it where nobody writes.

    `.name.old` is only ever there while a complete `.name.partial` takes its place.
    """
    partial, old = _beside(folder, "partial"), _beside(folder, "old")
    with told(folder):
        if old.exists() and not folder.exists():
            os.replace(partial if partial.exists() else old, folder)
        for rest in (partial, old):
            if rest.exists():
                shutil.rmtree(rest)


def _swap(partial: Path, folder: Path) -> None:
    old = _beside(folder, "old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    _sync(folder.parent)
    if old.exists():
        shutil.rmtree(old)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{ending}")


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    """Wait until the disk has the file, or the folder's list of names (which Windows cannot be asked for)."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _NO_SYNC):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Say a full disk, a missing permission and their like as a sentence with an address."""
    try:
        yield
    except OSError as error:
        hint = _FIXABLE.get(errno.errorcode.get(error.errno or 0, ""))
        if hint is None:
            raise
        raise RunError(f"cannot be written: {error.strerror}", at=str(path), hint=hint) from error


# Safe paths and checksums


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path as its user means it: `~` and `~name` are homes, unless nobody is called so."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_there(path: Path) -> bool:
    """Whether anything lies at `path`; at a name that no path may have, or behind a closed door, there is nothing."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def safe_child(folder: Path, name: str) -> Path:
    """The path of `name` inside `folder`, for names read from a file.

    Raises:
        RunError: `name` is empty, absolute or climbs out, by the rules of POSIX or of Windows. Links are followed: a
            folder out of the hub's cache is made of them.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    absolute = PurePosixPath(name).is_absolute() or bool(PureWindowsPath(name).anchor)
    if absolute or not parts or ".." in parts or "\0" in name:
        raise RunError(f"{name!r} is no path inside this folder", at=str(folder))
    return folder.joinpath(*parts)


def sha256_file(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_folder(folder: Path, pattern: str = "**/*") -> str:
    """The SHA-256 over the sorted names and checksums of the files that match; dot files (locks, partials) excepted."""
    digest = hashlib.sha256()
    files = {path.relative_to(folder): path for path in folder.glob(pattern) if path.is_file()}
    for name in sorted(files, key=PurePosixPath):
        if not any(part.startswith(".") for part in name.parts):
            digest.update(f"{sha256_file(files[name])}  {name.as_posix()}\n".encode())
    return digest.hexdigest()


# JSON


def to_json(value: object, *, indent: int | None = None, sort: bool = True) -> str:
    """`value` as JSON: keys sorted, so equal values give equal bytes; text readable; infinity and NaN refused.

    `sort=False` keeps the order of a user's fields. A lone surrogate has no UTF-8: its text is escaped to ASCII.

    Raises:
        ValueError: a number is not finite; the message says where.
    """
    bad = _not_finite(value)
    if bad is not None:
        raise ValueError(f"{bad} is not a finite number")
    text = json.dumps(value, sort_keys=sort, indent=indent, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, sort_keys=sort, indent=indent)
    return text


def _not_finite(value: object, at: str = "value") -> str | None:
    """The address of the first number in `value` that JSON cannot say."""
    if isinstance(value, float):
        return None if math.isfinite(value) else at
    inside: Iterator[tuple[object, object]] = iter(())
    if isinstance(value, Mapping):
        inside = iter(value.items())
    elif isinstance(value, list | tuple):
        inside = iter(enumerate(value))
    return next((bad for key, item in inside if (bad := _not_finite(item, f"{at}.{key}"))), None)


def write_json(path: Path, value: object) -> None:
    """Write `value` for people to read: `to_json`, indented by two, whole or not at all."""
    write_atomic(path, to_json(value, indent=2) + "\n")


def read_json(path: Path) -> object:
    """The value in a file of ours.

    Raises:
        RunError: the file is missing or no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunError("is missing", at=str(path), hint="the folder is incomplete: copy or train it again") from None
    except OSError as error:
        raise RunError(f"cannot be read: {error.strerror}", at=str(path), hint="see to its permissions") from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"is no JSON: {error}", at=str(path), hint="the file was changed or cut off") from None


def append_jsonl(path: Path, row: Mapping[str, object]) -> None:
    """Add one line. What a kill left of a line (no line end) is dropped first, so the new one stands alone."""
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            file.truncate(_whole_bytes(file.fileno()))
            file.seek(0, os.SEEK_END)
            file.write(to_json(row).encode() + b"\n")


def read_jsonl(path: Path) -> Iterator[dict[str, object]]:
    """The rows, in order; a last line without a line end was cut off by a kill and is passed over.

    Raises:
        RunError: a whole line is no JSON object.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield _row(line, f"{path}:{number}")


def _row(line: bytes, at: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RunError(f"is no JSON: {error}", at=at, hint="the file was changed") from None
    if not isinstance(row, dict):
        raise RunError("is no JSON object", at=at, hint="the file was changed")
    return row


def _whole_bytes(descriptor: int, step: int = 4096) -> int:
    """How many bytes of the file are whole lines: up to its last line end, looked for from the back."""
    end = os.lseek(descriptor, 0, os.SEEK_END)
    while end > 0:
        start = max(0, end - step)
        os.lseek(descriptor, start, os.SEEK_SET)
        found = os.read(descriptor, end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


# The lock


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Be the only writer of `folder` (made where absent) inside the block; the system frees a killed holder's lock.

    The empty lock file stays: removing it would let two processes lock two files of one name.

    Raises:
        RunError: another holder, in this process or another, is writing.
    """
    with told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(folder / LOCK_NAME)
        try:
            held.acquire(timeout=0)
        except Timeout:
            raise _held(folder) from None
    holder = folder / HOLDER_NAME
    try:
        write_atomic(holder, str(os.getpid()))
        yield
    finally:
        holder.unlink(missing_ok=True)
        held.release()


def _held(folder: Path) -> RunError:
    try:
        who = f"another process (pid {int((folder / HOLDER_NAME).read_bytes())})"
    except (OSError, ValueError):  # it has just begun, or is just ending
        who = "another process"
    return RunError(f"{who} is writing this run", at=str(folder), hint="wait for it to end, or choose another folder")
