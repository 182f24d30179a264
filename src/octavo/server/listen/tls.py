"""What --ssl-certfile, --ssl-keyfile and --ssl-ca-certs make: a TLS context, or the reason why not."""

from __future__ import annotations

import ssl
from pathlib import Path

from octavo.core.config import ServerConfig
from octavo.core.errors import ConfigError


def tls_context(config: ServerConfig) -> ssl.SSLContext | None:
    """TLS 1.2 or newer with the certificate of the config; None without one.

    With CA certificates a caller must show a certificate that one of them has signed.

    Raises:
        ConfigError: E-SEC-03: half of a pair, or a file that cannot be read or does not hold what it should.
    """
    if config.ssl_certfile is None:
        for flag, value in (
            ("--ssl-keyfile", config.ssl_keyfile),
            ("--ssl-ca-certs", config.ssl_ca_certs),
        ):
            if value is not None:
                raise _bad(f"{flag} is given without --ssl-certfile.", "Give both or neither.")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    certificate = _file("--ssl-certfile", config.ssl_certfile)
    key = None if config.ssl_keyfile is None else _file("--ssl-keyfile", config.ssl_keyfile)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        names = f"{config.ssl_certfile!r}" + (f" and {config.ssl_keyfile!r}" if key else "")
        raise _bad(
            f"{names}: {error.reason or error}.",
            "Expected PEM: a certificate chain, and its private key without a password"
            + (" (in the same file, or in --ssl-keyfile)." if key is None else "."),
        ) from error
    if config.ssl_ca_certs is not None:
        authorities = _file("--ssl-ca-certs", config.ssl_ca_certs)
        try:
            context.load_verify_locations(authorities)
        except ssl.SSLError as error:
            raise _bad(
                f"--ssl-ca-certs {config.ssl_ca_certs!r}: {error.reason or error}.",
                "Expected PEM certificates.",
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _file(flag: str, name: str) -> Path:
    """The file, if it can be read: ssl's own complaint does not name it."""
    path = Path(name).expanduser()
    try:
        path.read_bytes()
    except OSError as error:
        raise _bad(
            f"{flag} {name!r}: {error.strerror}.", "Name a file that this user can read."
        ) from error
    return path


def _no_password() -> str:
    """Asked for when the key is encrypted. A server must not wait for somebody to type."""
    return ""


def _bad(message: str, fix: str) -> ConfigError:
    return ConfigError(message, code="E-SEC-03", fix=fix)
