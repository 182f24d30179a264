"""Who may call: as which tenant, in which role, how much. Keys are known by their hashes; none is stored, logged or
sent on.

Two sources: keys named at the start (`--api-key`, OCTAVO_API_KEY), each a tenant of its own, and the key store. A key
named at the start is an operator where there is no store and a user beside one, and never an admin: to be more than one
among many is written down in the store.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from octavo.core.config import ServerConfig
from octavo.core.errors import AuthError, ConfigError
from octavo.engine.frontend import Caller
from octavo.server.keys.allowance import Allowance
from octavo.server.keys.rows import ROLES, KeyRow, Role, digest
from octavo.server.keys.store import FILE, KeyStore
from octavo.server.keys.watch import Watch

_TENANT_CHARS = 16


class Guest(NamedTuple):
    """Somebody who was let in."""

    caller: Caller
    role: Role
    allowance: Allowance
    key: str = ""
    """Id under which the key is booked (`KeyRow.books_as`); empty for who came without one."""

    def may(self, role: Role) -> bool:
        """Whether this is enough for what asks for `role`."""
        return ROLES.index(self.role) >= ROLES.index(role)


class KeyRing:
    """The keys that open the protected routes. Without any, every caller is let in as the one shared tenant.

    Owner: the server's event loop. `store` is a key file, which may come into being later.

    Raises:
        ConfigError: a key of nothing but space, or a key file that cannot be used.
    """

    def __init__(self, keys: Iterable[str] = (), store: Path | None = None) -> None:
        # A key out of a file or a list comes with its line break or space; no header could hold those.
        bare = dict.fromkeys(key.strip() for key in keys if key)
        if "" in bare:
            raise ConfigError(
                "an API key is blank, which would lock nobody out or everybody.",
                fix="Look at OCTAVO_API_KEY and --api-key.",
            )
        self._named = {digest(key.encode()) for key in bare}
        self._watch = None if store is None else Watch(store)
        self._allowances: dict[str, Allowance] = {}
        self._unlimited = Allowance()

    def close(self) -> None:
        """Let go of the key file."""
        if self._watch is not None:
            self._watch.close()

    @property
    def has_store(self) -> bool:
        """Whether there is, or was, a key file."""
        if self._watch is None:
            return False
        _ = self._watch.by_hash  # looks whether one has come
        return self._watch.has_file

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for. A key file without a key in it asks for one that nobody has."""
        return not self._named and not self.has_store

    def guest_of(self, tenant: str) -> Guest | None:
        """A tenant's work that goes on without a call, by the most generous of its keys; None when it has none left."""
        if self.is_open:
            return self._anyone() if not tenant else None
        if any(_tenant_of(known) == tenant for known in self._named):
            return self._named_guest(tenant)
        now = time.time()
        rows = [row for row in self._rows() if row.tenant == tenant and row.state(now) == "active"]
        return self._guest(max(rows, key=_generosity)) if rows else None

    def admit(self, authorization: Sequence[str]) -> Guest:
        """Who is behind the values of all Authorization headers of a call.

        Tenant and cache scope are derived from the key, so that callers with keys of different tenants share no cached
        prefix.

        Raises:
            AuthError: not exactly one `Bearer` header, or no such key, or it holds no longer.
        """
        if self.is_open:
            return self._anyone()
        if len(authorization) != 1:
            given = "no" if not authorization else f"{len(authorization)}"
            raise AuthError(
                f"{given} Authorization header; expected one `Authorization: Bearer KEY`."
            )
        scheme, _, key = authorization[0].strip().partition(" ")
        # Header values are bytes that were read as Latin-1; keys beyond ASCII are sent as UTF-8.
        # What is compared from here on are hashes: how long that takes tells nothing about a key's characters.
        given_hash = digest(key.strip().encode("latin-1", "replace"))
        if scheme.lower() == "bearer":
            row = None if self._watch is None else self._watch.by_hash.get(given_hash)
            if row is not None:
                return self._stored_guest(row)
            if given_hash in self._named:
                return self._named_guest(_tenant_of(given_hash))
        raise AuthError("the API key is not known here; expected `Authorization: Bearer KEY`.")

    def _stored_guest(self, row: KeyRow) -> Guest:
        state = row.state(time.time())
        if state != "active":
            raise AuthError(f"the API key {row.prefix}... is {state}.", code=f"{state}_api_key")
        assert self._watch is not None
        self._watch.use(row)
        return self._guest(row)

    def _guest(self, row: KeyRow) -> Guest:
        allowance = self._allowances.get(row.id)
        if allowance is None:
            allowance = self._allowances[row.id] = Allowance()
        allowance.set_limits(row.limits)
        caller = Caller(tenant=row.tenant, cache_scope=row.tenant, weight=row.weight)
        return Guest(caller, row.role, allowance, row.books_as)

    def _named_guest(self, tenant: str) -> Guest:
        role: Role = "user" if self.has_store else "operator"
        return Guest(Caller(tenant=tenant, cache_scope=tenant), role, self._unlimited, tenant)

    def _anyone(self) -> Guest:
        return Guest(Caller(), "operator", self._unlimited)

    def admin(self) -> Guest:
        """Who comes through the admin socket: its file mode has let nobody else in."""
        return Guest(Caller(), "admin", self._unlimited)

    def _rows(self) -> Iterable[KeyRow]:
        return () if self._watch is None else self._watch.by_hash.values()


def key_file(config: ServerConfig) -> Path | None:
    """Where the key store of a server is, or would be."""
    if config.key_store is not None:
        return Path(config.key_store).expanduser()
    return None if config.state_dir is None else Path(config.state_dir).expanduser() / FILE


def key_ring(config: ServerConfig, named: Iterable[str]) -> KeyRing:
    """The keys of a server; `--key-store` names a file that is made if need be.

    Raises:
        ConfigError: as `KeyRing` does.
    """
    path = key_file(config)
    if config.key_store is not None and path is not None:
        KeyStore(path, create=True).close()
    return KeyRing((*config.api_key, *named), path)


def _tenant_of(key_hash: bytes) -> str:
    return key_hash.hex()[:_TENANT_CHARS]


def _generosity(row: KeyRow) -> tuple[float, float, float]:
    """Of two keys the one that may use more tokens, then requests, then calls at once."""
    limits = row.limits
    most = (limits.tokens_per_minute, limits.requests_per_minute, limits.max_concurrency)
    tokens, requests, calls = (float("inf") if limit is None else float(limit) for limit in most)
    return tokens, requests, calls
