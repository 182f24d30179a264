"""`octavo doctor --security`: what a server exposes, with the cause and what to do about each.

Looks at a running server by its URL, at the `octavo serve` processes of this user, or at flags before they are used.
Prints no key, and writes nothing.
"""

from __future__ import annotations

import shlex
import stat
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import time
from typing import Literal, NamedTuple

from octavo.core import env
from octavo.core.config import ServerConfig
from octavo.core.errors import ConfigError, OctavoError
from octavo.server.app import ROUTES
from octavo.server.auth import key_file
from octavo.server.keys.rows import ROLES
from octavo.server.keys.store import KeyStore
from octavo.server.listen.admin_socket import admin_path
from octavo.server.listen.exposure import is_loopback
from octavo.server.listen.tls import tls_context
from octavo.tools.cli import parser_of
from octavo.tools.flags import configs

Status = Literal["ok", "warn", "fail"]
Finding = tuple[str, Status, str, str]
"""What was looked at, how it is, what was found, what to do."""

_MIN_KEY_CHARS = 16
_PROBE_S = 5.0
_NAMES = ("octavo", "octavo.tools.cli")


class Subject(NamedTuple):
    """A server that runs, or would."""

    name: str
    config: ServerConfig
    words: tuple[str, ...]
    """Its command line after `serve`: what everyone on the machine can read."""
    named: tuple[str, ...]
    """Keys of its OCTAVO_API_KEY."""
    folder: Path
    """From where its relative paths count."""

    def path(self, path: Path | None) -> Path | None:
        """Where one of its paths leads."""
        return None if path is None else self.folder / path


def subjects(flags: str | None) -> list[Subject]:
    """The server that `flags` would start, else those that run, else the one without flags.

    Raises:
        ConfigError: bad flags.
    """
    if flags is not None:
        return [_subject("these flags", shlex.split(flags), env.api_keys(), Path.cwd())]
    return list(running()) or [
        _subject("octavo serve (none is running)", [], env.api_keys(), Path.cwd())
    ]


def running() -> Iterator[Subject]:
    """The servers of this user on this machine."""
    for folder in sorted(Path("/proc").glob("[0-9]*")):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            if (found := _serve_words(words)) is None:
                continue
            given = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            cwd = (folder / "cwd").readlink()
            keys = next((one[15:] for one in given if one.startswith("OCTAVO_API_KEY=")), "")
            named = tuple(key for key in keys.split(",") if key)
            found = _absolute(found, cwd)
            yield _subject(f"process {folder.name}", found, named, cwd)
        except (OSError, ConfigError):
            continue  # it has ended, is another user's, or is not what it seemed


def _serve_words(words: Sequence[str]) -> list[str] | None:
    """What follows `octavo serve` in a command line."""
    for index, word in enumerate(words[1:], 1):
        if word == "serve" and Path(words[index - 1]).name in _NAMES:
            return list(words[index + 1 :])
    return None


def _absolute(words: Sequence[str], folder: Path) -> list[str]:
    """The words with the config file's path as it is from here."""
    done = list(words)
    for index, word in enumerate(words):
        if word == "--config" and index + 1 < len(words):
            done[index + 1] = str(folder / words[index + 1])
        elif word.startswith("--config="):
            done[index] = f"--config={folder / word[9:]}"
    return done


def _subject(name: str, words: Sequence[str], named: tuple[str, ...], folder: Path) -> Subject:
    config = configs(parser_of("serve").parse(words)).server
    return Subject(name, config, tuple(words), named, folder)


def judge(subject: Subject) -> list[Finding]:
    """All findings about a server whose flags are known."""
    return [
        _address(subject),
        *_keys(subject),
        *_roles(),
        _tls(subject),
        _admin(subject),
        *_files(subject),
        _arguments(subject),
        ("media", "ok", "no URL in a request is ever fetched; media are refused", ""),
    ]


def _is_open(subject: Subject) -> bool:
    store = subject.path(key_file(subject.config))
    has_store = subject.config.key_store is not None or (store is not None and store.exists())
    return not (has_store or subject.config.api_key or subject.named)


def _address(subject: Subject) -> Finding:
    config = subject.config
    where = f"{config.host}:{config.port}"
    if is_loopback(config.host):
        return "address", "ok", f"{where}, this machine alone", ""
    if not _is_open(subject):
        return "address", "ok", f"{where}, other machines; a key is asked for", ""
    if config.allow_open:
        fix = "Set OCTAVO_API_KEY or use --key-store, and drop --allow-open."
        return "address", "warn", f"{where}, other machines, without a key (--allow-open)", fix
    fix = "Set OCTAVO_API_KEY, use --key-store, or listen on 127.0.0.1."
    return (
        "address",
        "fail",
        f"{where}, other machines, without a key: it refuses to start (E-SEC-01)",
        fix,
    )


def _keys(subject: Subject) -> Iterator[Finding]:
    named = {key.strip() for key in (*subject.config.api_key, *subject.named)}
    if _is_open(subject):
        fix = "Set OCTAVO_API_KEY, or make keys with `octavo keys create`."
        yield "keys", "warn", "none: every user and every program of this machine may call", fix
        return
    if named:
        weak = sum(len(key) < _MIN_KEY_CHARS for key in named)
        text = f"{len(named)} named at the start; they hold until it ends, without limits"
        if weak:
            fix = "Make long ones: `octavo keys create` makes 256 random bits."
            yield "keys", "warn", f"{text}; {weak} shorter than {_MIN_KEY_CHARS} characters", fix
        else:
            yield "keys", "ok", text, ""
    path = subject.path(key_file(subject.config))
    if path is None or not path.exists():
        return
    try:
        with KeyStore(path) as store:
            rows = store.rows()
    except OctavoError as error:
        yield "key store", "fail", error.message, error.fix
        return
    active = [row for row in rows if row.state(time()) == "active"]
    roles = Counter(row.role for row in active)
    text = f"{path}: {len(active)} active of {len(rows)}"
    text += "".join(f", {roles[role]} {role}" for role in ROLES if roles[role])
    if not active and not named:
        yield (
            "key store",
            "warn",
            f"{text}: nobody gets in",
            "Make a key with `octavo keys create`.",
        )
    else:
        yield "key store", "ok", text, ""
    endless = [row.name for row in active if row.role == "admin" and row.expires is None]
    if endless:
        fix = "Replace them with `octavo keys create --role admin --expires 90d`."
        yield "admin keys", "warn", f"never expire: {', '.join(endless[:8])}", fix


def _roles() -> Iterator[Finding]:
    public = " ".join(dict.fromkeys(row.path for row in ROUTES if row.public))
    yield "public routes", "ok", public, ""
    for role in ROLES:
        paths = dict.fromkeys(row.path for row in ROUTES if not row.public and row.role == role)
        text = f"{len(paths)} routes" if role == "user" else " ".join(paths)
        yield f"role {role}", "ok", text, ""


def _tls(subject: Subject) -> Finding:
    config = subject.config
    try:
        context = tls_context(config)
    except OctavoError as error:
        return "TLS", "fail", error.message, error.fix
    if context is None:
        if is_loopback(config.host):
            return "TLS", "ok", "off; nothing leaves this machine", ""
        fix = "Give --ssl-certfile and --ssl-keyfile, or put a TLS proxy in front."
        return "TLS", "warn", "off: keys and prompts cross the network in the clear", fix
    private = subject.path(Path(config.ssl_keyfile or config.ssl_certfile or ""))
    if private is not None and _others_may_read(private):
        return "TLS", "fail", f"others may read {private}", f"Run `chmod 600 {private}`."
    asked = "; callers show certificates" if config.ssl_ca_certs else ""
    return "TLS", "ok", f"{config.ssl_certfile}{asked}", ""


def _admin(subject: Subject) -> Finding:
    path = subject.path(admin_path(subject.config))
    if path is None:
        return "admin socket", "ok", "none; admin routes need a key of role admin", ""
    if not path.exists():
        return "admin socket", "ok", f"{path}, not there now", ""
    if _others_may_read(path) or stat.S_IMODE(path.stat().st_mode) & 0o022:
        mode = stat.S_IMODE(path.stat().st_mode)
        return "admin socket", "fail", f"{path} has mode {mode:04o}", f"Run `chmod 600 {path}`."
    return "admin socket", "ok", f"{path}, its owner alone, without a key", ""


def _files(subject: Subject) -> Iterator[Finding]:
    if subject.config.state_dir is None:
        return
    folder = subject.folder / Path(subject.config.state_dir).expanduser()
    if not folder.is_dir():
        yield "state dir", "ok", f"{folder}, not there yet", ""
        return
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o077:
        fix = f"Run `chmod 700 {folder}`."
        yield (
            "state dir",
            "fail",
            f"{folder} has mode {mode:04o}: others may read callers' files",
            fix,
        )
    else:
        yield "state dir", "ok", f"{folder}, mode {mode:04o}", ""


def _arguments(subject: Subject) -> Finding:
    if any(word.partition("=")[0] == "--api-key" for word in subject.words):
        fix = "Set OCTAVO_API_KEY instead, and use another key: this one has been seen."
        return (
            "command line",
            "warn",
            "--api-key: every user of the machine can read it in `ps`",
            fix,
        )
    return "command line", "ok", "no secret in it", ""


def _others_may_read(path: Path) -> bool:
    try:
        return bool(stat.S_IMODE(path.stat().st_mode) & 0o044)
    except OSError:
        return False


def probe(url: str) -> list[Finding]:
    """What a server at a URL answers without a key. Only reads.

    Raises:
        ConfigError: no http URL, or nothing answers there.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"--security {url!r} is no http or https URL.",
            code="E-CFG-01",
            fix="Give http://HOST:PORT.",
        )
    base = f"{parts.scheme}://{parts.netloc}"
    found: list[Finding] = []
    is_far = not is_loopback(parts.hostname)
    if parts.scheme == "https":
        found.append(("TLS", "ok", "on, and its certificate is trusted here", ""))
    else:
        fix = "Give --ssl-certfile and --ssl-keyfile, or put a TLS proxy in front."
        text = "off" + ": keys and prompts cross the network in the clear" * is_far
        found.append(("TLS", "warn" if is_far else "ok", text, fix * is_far))
    is_open = False
    answered = []
    for row in ROUTES:
        if row.method != "GET" or "{" in row.path:
            continue
        status = _status(base + row.path)
        if row.public or status in (401, 403, 404):
            answered += [row.path] if row.public and status != 404 else []
            continue
        is_open = True
        fix = "Restart it with OCTAVO_API_KEY or --key-store."
        bad: Status = "fail" if is_far else "warn"
        found.append((row.path, bad, f"answers {status} without a key", fix))
    found.append(("public routes", "ok", " ".join(answered) or "none answers", ""))
    if not is_open:
        found.append(("keys", "ok", "asked for on every other route that was tried", ""))
    return found


def _status(url: str) -> int:
    request = urllib.request.Request(url, headers={"user-agent": "octavo-doctor"})  # noqa: S310  # checked by `probe`
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(request, timeout=_PROBE_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(
            f"nothing answers at {url}: {reason}.", code="E-NET-03", fix="Is the server running?"
        ) from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer; what it points to is not asked."""

    def redirect_request(self, *args: object) -> None:
        return None
