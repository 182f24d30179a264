"""TLS: a certificate of the test's own is served; what cannot be served is named before anything starts."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from fakes import running
from octavo.core.config import ServerConfig
from octavo.core.errors import ConfigError
from octavo.server.listen.tls import tls_context
from octavo.tools.startup import Address


class Files(NamedTuple):
    """A self-signed certificate for 127.0.0.1, its key, and the key under a password."""

    certificate: str
    key: str
    locked: str


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the openssl command makes the certificate")
    folder: Path = tmp_path_factory.mktemp("tls")
    made = Files(*(str(folder / name) for name in ("cert.pem", "key.pem", "locked.pem")))
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    subject = ("-subj", "/CN=octavo", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2")
    for command in (
        ("req", "-x509", "-nodes", *curve, *subject, "-keyout", made.key, "-out", made.certificate),
        ("ec", "-in", made.key, "-out", made.locked, "-aes128", "-passout", "pass:secret"),
    ):
        subprocess.run([openssl, *command], check=True, capture_output=True)
    return made


def context(**files: str | None) -> ssl.SSLContext | None:
    return tls_context(ServerConfig(**files))  # type: ignore[arg-type]  # the flags' own names


def test_https_is_served_and_plain_http_is_not(files: Files) -> None:
    with running(ssl_certfile=files.certificate, ssl_keyfile=files.key) as server:
        url = server.url.replace("http", "https")
        trust = ssl.create_default_context(cafile=files.certificate)
        assert httpx.get(f"{url}/health", verify=trust).status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{server.url}/health")
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.load_verify_locations(files.certificate)
        with pytest.warns(DeprecationWarning):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health", verify=old)


def test_with_authorities_a_caller_must_show_a_certificate(files: Files) -> None:
    options = {
        "ssl_certfile": files.certificate,
        "ssl_keyfile": files.key,
        "ssl_ca_certs": files.certificate,
    }
    with running(**options) as server:
        url = server.url.replace("http", "https")
        trust = ssl.create_default_context(cafile=files.certificate)
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{url}/health", verify=trust)
        trust.load_cert_chain(files.certificate, files.key)
        assert httpx.get(f"{url}/health", verify=trust).status_code == 200


def test_one_file_may_hold_both(files: Files, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_text(Path(files.certificate).read_text() + Path(files.key).read_text())
    assert context(ssl_certfile=str(both)) is not None
    assert context() is None


def test_what_cannot_be_served_is_named(files: Files, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    certificate, key = files.certificate, files.key
    cases: list[tuple[dict[str, str | None], str]] = [
        ({"ssl_keyfile": key}, "--ssl-keyfile is given without --ssl-certfile"),
        ({"ssl_ca_certs": key}, "--ssl-ca-certs is given without --ssl-certfile"),
        ({"ssl_certfile": "/nowhere"}, "--ssl-certfile '/nowhere': No such file"),
        ({"ssl_certfile": certificate, "ssl_keyfile": "/nowhere"}, "--ssl-keyfile '/nowhere'"),
        ({"ssl_certfile": certificate, "ssl_keyfile": str(tmp_path)}, "Is a directory"),
        ({"ssl_certfile": certificate}, "cert.pem"),
        ({"ssl_certfile": key, "ssl_keyfile": certificate}, "key.pem"),
        ({"ssl_certfile": str(junk), "ssl_keyfile": key}, "junk.pem"),
        ({"ssl_certfile": certificate, "ssl_keyfile": files.locked}, "locked.pem"),
        (
            {"ssl_certfile": certificate, "ssl_keyfile": key, "ssl_ca_certs": str(junk)},
            "--ssl-ca-certs .*junk.pem",
        ),
    ]
    for flags, message in cases:
        with pytest.raises(ConfigError, match=message) as caught:
            context(**flags)
        assert caught.value.code == "E-SEC-03" and caught.value.fix


def test_what_is_printed_says_https() -> None:
    address = Address(host="0.0.0.0", port=1, model="m", needs_key=False, is_tls=True)
    assert address.url == "https://127.0.0.1:1"
