"""Who may call, and as which tenant. Keys are compared as hashes; none is stored, logged or sent on."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence

from octavo.core.errors import AuthError, ConfigError
from octavo.engine.frontend import Caller

_TENANT_CHARS = 16


class KeyRing:
    """The keys that open the protected routes. Without any, every caller is let in as the one shared tenant.

    Raises:
        ConfigError: a key of nothing but space.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        # A key out of a file or a list comes with its line break or space; no header could hold those.
        bare = dict.fromkeys(key.strip() for key in keys if key)
        if "" in bare:
            raise ConfigError(
                "an API key is blank, which would lock nobody out or everybody.",
                fix="Look at OCTAVO_API_KEY and --api-key.",
            )
        self._hashes = tuple(_digest(key.encode()) for key in bare)

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for."""
        return not self._hashes

    def has_tenant(self, tenant: str) -> bool:
        """Whether some key of today belongs to this tenant."""
        if self.is_open:
            return not tenant
        return any(known.hex()[:_TENANT_CHARS] == tenant for known in self._hashes)

    def caller(self, authorization: Sequence[str]) -> Caller:
        """The caller behind the values of all Authorization headers of a call.

        Tenant and cache scope are derived from the key, so that callers with different keys share no cached prefix.

        Raises:
            AuthError: not exactly one `Bearer` header, or no such key.
        """
        if self.is_open:
            return Caller()
        if len(authorization) != 1:
            given = "no" if not authorization else f"{len(authorization)}"
            raise AuthError(
                f"{given} Authorization header; expected one `Authorization: Bearer KEY`."
            )
        scheme, _, key = authorization[0].strip().partition(" ")
        # Header values are bytes that were read as Latin-1; keys beyond ASCII are sent as UTF-8.
        given_hash = _digest(key.strip().encode("latin-1", "replace"))
        # Every key is compared, in constant time, so that timing tells neither a prefix nor a position.
        matches = [hmac.compare_digest(given_hash, known) for known in self._hashes]
        if scheme.lower() != "bearer" or not any(matches):
            raise AuthError("the API key is not known here; expected `Authorization: Bearer KEY`.")
        tenant = given_hash.hex()[:_TENANT_CHARS]
        return Caller(tenant=tenant, cache_scope=tenant)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
