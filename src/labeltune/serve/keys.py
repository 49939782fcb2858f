"""API keys: who may ask, and who may load and unload runs; kept and compared as hashes."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from labeltune.errors import SettingsError
from labeltune.storage import told

CLIENTS, ADMINS = "LABELTUNE_KEYS", "LABELTUNE_ADMIN_KEYS"
"""Environment variables with keys, parted by commas."""
SHORTEST = 16
_REMARK = re.compile(r"(^|\s)#.*")


@dataclass(frozen=True)
class Keys:
    """The keys of a server. Without any, everybody may ask; without admins' keys, nobody may load or unload."""

    clients: frozenset[bytes] = frozenset()
    admins: frozenset[bytes] = frozenset()

    @classmethod
    def gather(cls, environment: Mapping[str, str], clients: Path | None = None, admins: Path | None = None) -> Keys:
        """From the environment, and from files with a key a line (` #`, or `#` at a line's start, begins a remark).

        Raises:
            SettingsError: a file without keys, a short key, a variable for clients that is set and empty.
        """
        if CLIENTS in environment and not environment[CLIENTS].strip(" ,"):
            raise SettingsError("it is set and holds no key", at=CLIENTS, hint="unset it to let everybody ask")
        found = []
        for variable, path in ((CLIENTS, clients), (ADMINS, admins)):
            keys = [key.strip() for key in environment.get(variable, "").split(",") if key.strip()]
            keys += _read(path) if path is not None else []
            found.append(frozenset(map(_checked, keys)))
        return cls(*found)

    def asks(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether the headers of a request carry a key; always where there are none."""
        return not self.clients | self.admins or self._held(headers, self.clients | self.admins)

    def commands(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether the headers carry an admin's key."""
        return self._held(headers, self.admins)

    def _held(self, headers: Iterable[tuple[bytes, bytes]], keys: frozenset[bytes]) -> bool:
        given = [_digest(key) for name, value in headers if (key := _key(name, value)) is not None]
        return any([hmac.compare_digest(one, key) for one in given for key in keys])  # all are compared, found or not


def _key(name: bytes, value: bytes) -> bytes | None:
    """`Authorization: Bearer KEY`, `X-API-Key: KEY`, or the password that a browser asks for."""
    if name.lower() == b"x-api-key":
        return value.strip()
    kind, _, rest = value.strip().partition(b" ")
    if name.lower() != b"authorization":
        return None
    if kind.lower() == b"bearer":
        return rest.strip()
    if kind.lower() == b"basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
        except binascii.Error:
            return None
    return None


def _read(path: Path) -> list[str]:
    with told(path):
        try:
            lines = path.read_text("utf-8").splitlines()
        except (FileNotFoundError, UnicodeDecodeError):
            raise SettingsError("there is no such file of keys", at=str(path), hint="a key a line") from None
    keys = [_REMARK.sub("", line).strip() for line in lines]
    if not any(keys):
        raise SettingsError("there is no key in this file", at=str(path), hint="write a key a line")
    return [key for key in keys if key]


def _checked(key: str) -> bytes:
    if len(key) < SHORTEST or not key.isascii():
        hint = "for example: python -c 'import secrets; print(secrets.token_urlsafe(24))'"
        raise SettingsError(f"a key has at least {SHORTEST} ASCII characters", at="API keys", hint=hint)
    return _digest(key.encode())


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
