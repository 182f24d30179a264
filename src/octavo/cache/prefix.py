"""Names for the content of blocks: a 128-bit hash chain over everything that keys and values depend on.

digest(block i) = BLAKE2b-128(digest(block i - 1) || token ids of block i), and the chain starts from the tenant scope,
the model revision and the adapter. Equal digests mean equal keys and values; 128 bits of a cryptographic hash make an
accidental or forged collision a non-event (CVE-2025-25183 is what a weak hash costs).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from octavo.core.kvspec import BLOCK_SIZE

DIGEST_BYTES = 16
BLOCK_BYTES = BLOCK_SIZE * array("i").itemsize


def root_digest(scope: str, revision: str, adapter: str | None) -> bytes:
    """Where a chain starts. Fields are length-prefixed, so that no two triples run together."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"octavo-prefix-1")
    for field in (scope, revision, adapter or ""):
        data = field.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def extend_chain(
    chain: list[bytes], root: bytes, token_ids: Sequence[int], num_tokens: int
) -> None:
    """Append to `chain` the digests of all full blocks within the first `num_tokens` token ids."""
    first = len(chain) * BLOCK_SIZE
    data = array("i", token_ids[first : num_tokens // BLOCK_SIZE * BLOCK_SIZE]).tobytes()
    digest = chain[-1] if chain else root
    for at in range(0, len(data), BLOCK_BYTES):
        digest = next_digest(digest, data[at : at + BLOCK_BYTES])
        chain.append(digest)


def next_digest(before: bytes, block: bytes) -> bytes:
    """The digest of a block, of its token ids as int32, behind that of the one before it."""
    return hashlib.blake2b(before + block, digest_size=DIGEST_BYTES).digest()
