"""An API key as data: what it may do, for whom, how much of it, and how long. Knows no database and no HTTP."""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from typing import Literal, NamedTuple, get_args

import msgspec

from octavo.core.errors import ConfigError

Role = Literal["user", "operator", "admin"]
"""Each may do what those before it may: user calls models and has objects of its own; operator reads metrics and
load, too; admin changes the engine and acts on everyone's requests."""
ROLES: tuple[Role, ...] = get_args(Role)

PREFIX = "sk-octavo-"
_LETTERS = string.ascii_letters + string.digits
_NUM_LETTERS = 43  # 256 bits
_SHOWN_LETTERS = 4
MAX_LIMIT = 10**9
MAX_NAME_CHARS = 64
MIN_WEIGHT, MAX_WEIGHT = 0.01, 1000.0
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}")


class Limits(NamedTuple):
    """What a key may use on one server; None is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Of prompts and outputs together."""
    max_concurrency: int | None = None
    """Generating calls at once."""


class KeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """All that is kept of a key. Times are Unix seconds."""

    id: str
    hash: bytes
    """SHA-256 of the key. The key itself is nowhere."""
    prefix: str
    """Its first characters, to tell keys apart by."""
    name: str
    role: Role = "user"
    tenant: str
    """Whose it is: keys of one tenant share cached prefixes, files, batches and a fair share."""
    weight: float = 1.0
    """The tenant's share of a busy engine beside others'."""
    limits: Limits = Limits()
    created: int
    expires: int | None = None
    revoked: int | None = None
    used: int | None = None
    """When a call last came with it, to a minute."""
    origin: str = ""
    """Id of the first of the keys that were rotated up to this one; empty: this is it."""

    @property
    def books_as(self) -> str:
        """The id under which its use is booked, so that what a rotated key has used stays used."""
        return self.origin or self.id

    def state(self, now: float) -> Literal["active", "expired", "revoked"]:
        """What it is worth at `now`."""
        if self.revoked is not None and self.revoked <= now:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


def digest(key: bytes) -> bytes:
    """What a key is known by.

    One round of SHA-256 and no salt: a key of 256 random bits has no dictionary to be guessed from, so that a slow hash
    would only slow the server, and a look-up by hash needs the same hash every time.
    """
    return hashlib.sha256(key).digest()


def new_key() -> str:
    """A key that nobody can guess."""
    return PREFIX + "".join(secrets.choice(_LETTERS) for _ in range(_NUM_LETTERS))


def shown(key: str) -> str:
    """The part of a key that may be shown; what is left hides 232 bits."""
    return key[: len(PREFIX) + _SHOWN_LETTERS]


def check_tenant(tenant: str) -> str:
    """A tenant's name, as it may stand in logs and paths.

    Raises:
        ConfigError: anything else.
    """
    if not _TENANT.fullmatch(tenant):
        raise ConfigError(
            f"tenant is {tenant!r}; expected 1 to 48 letters, digits, dots, dashes and underscores.",
            code="E-SEC-05",
        )
    return tenant


def check_name(name: str) -> str:
    """A key's name. Raises ConfigError when it is empty, long, or not printable."""
    if not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable():
        raise ConfigError(
            f"name is {name!r}; expected 1 to {MAX_NAME_CHARS} printable characters.",
            code="E-SEC-05",
        )
    return name
