"""`octavo why ID`: where the time of a request went, who cost it most, and what would have been without them.

From a running server by its URL, or from the step log on disk after the fact; then the engine's part alone is known.
"""

from __future__ import annotations

import argparse
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from octavo.core import env
from octavo.core.errors import ConfigError, NotFoundError
from octavo.tools import output
from octavo.tools.parser import Parser
from octavo.tools.tables import table

if TYPE_CHECKING:
    from octavo.meter.evidence import Evidence

_ID = re.compile(r"[0-9a-f]{32}(?:-\d{1,9}){0,2}")
_BAR = 40
_LEAST_S, _LEAST_SHARE = 0.001, 0.02
"""Less sooner is not sooner."""
_NEAR_S = 0.01
"""A replay that is off by more, and by more than a factor of two, says nothing."""
_MOST_ANSWER = 1 << 20
_TIMEOUT_S = 30.0


class Shown(NamedTuple):
    """What is told of a request, wherever it came from."""

    head: str
    timing: dict[str, Any]
    """As `timing` of GET /v1/requests/{id}."""


def add_arguments(parser: Parser) -> None:
    """Add the verb's flags."""
    parser.add_argument(
        "id", help="The request's id: of the header x-request-id, or of the answer."
    )
    parser.add_argument(
        "--url", default="http://127.0.0.1:8000", help="The server to ask (default: %(default)s)."
    )
    parser.add_argument("--api-key", help="Key for --url; also OCTAVO_API_KEY.")
    parser.add_argument(
        "--step-log",
        help="Folder of a step log (steps in a --state-dir): read it instead of asking a server; "
        "beside --url, for what would have been.",
    )
    output.add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Tell it."""
    match = _ID.search(args.id)
    if match is None:
        raise ConfigError(
            f"{args.id[:80]!r} is no id of a request; expected 32 hexadecimal digits, maybe with a word before them.",
            code="E-CFG-01",
            fix="It stands in the header x-request-id of the answer.",
        )
    evidence = _read(args.step_log, match[0]) if args.step_log else None
    shown = _from_log(evidence) if evidence is not None else _ask(args.url, args.api_key, match[0])
    guess = _what_if(evidence) if evidence is not None else None
    told = None if evidence is None else guess_text(guess)
    output.show(
        args.json,
        lambda: _text(shown, told),
        lambda: json.dumps(
            {"request": match[0], "timing": shown.timing, "what_if": guess, "told": told}, indent=2
        ),
    )
    return 0


# -- where it comes from -------------------------------------------------------------------------------------------


def _ask(url: str, key: str | None, name: str) -> Shown:
    """From a running server."""
    keys = env.api_keys()
    key = key or (keys[0] if keys else None)
    call_id = name[:32]
    target = f"{url.rstrip('/')}/v1/requests/{call_id}"
    if urllib.parse.urlsplit(target).scheme not in ("http", "https"):
        raise ConfigError(f"--url {url!r}: expected http:// or https://.", code="E-CFG-01")
    request = urllib.request.Request(target)
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            found = json.loads(answer.read(_MOST_ANSWER))
    except urllib.error.HTTPError as error:
        raise NotFoundError(
            f"{target} answers {error.code}: {_message(error)}",
            fix="With --step-log, what the step log has is read instead.",
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{target} does not answer: {error}.",
            code="E-CFG-01",
            fix="Name the server by --url, or the step log by --step-log.",
        ) from error
    head = (
        f"request {found['id']} ({found['route']}): {found['state']}, {found['prompt_tokens']} prompt tokens, "
        f"{found['completion_tokens']} output tokens"
    )
    return Shown(head, found["timing"])


def _message(error: urllib.error.HTTPError) -> str:
    try:
        body = json.loads(error.read(_MOST_ANSWER))
        return str(body["error"]["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return str(error.reason)


def _read(folder: str, name: str) -> Evidence:
    # lazy: the step log's libraries, which asking a server does not need
    from octavo.meter.evidence import evidence

    path = Path(folder).expanduser()
    if (path / "steps").is_dir():
        path = path / "steps"
    found = evidence(path, name)
    if not found:
        raise NotFoundError(
            f"no request {name!r} in the step log {path}.",
            fix="It keeps the last --step-log-size MiB; ask the server by --url.",
        )
    return max(found, key=lambda one: one.ended.now if one.ended is not None else 0.0)


def _from_log(found: Evidence) -> Shown:
    # lazy: as above
    import msgspec

    # lazy: as above
    from octavo.meter.evidence import stamps_of
    from octavo.meter.why import explain

    arrived, ended = found.arrived, found.ended
    why = explain(arrived.id, stamps_of(found), found.seen)
    timing = msgspec.to_builtins(why)
    timing["request_id"] = arrived.id
    state = "open" if ended is None else ended.reason
    count = 0 if ended is None else ended.num_output
    head = f"request {arrived.id}: {state}, {arrived.num_prompt} prompt tokens, {count} output tokens; the engine's part alone"
    return Shown(head, timing)


def _what_if(found: Evidence) -> dict[str, Any] | str | None:
    """Without the one that cost it most before its first token, which is what is replayed; None where nobody did."""
    # lazy: the scheduler
    from octavo.engine.whatif import first_token_s, what_if

    # lazy: as above
    from octavo.meter.evidence import stamps_of
    from octavo.meter.why import explain

    stamps, first_s = stamps_of(found), first_token_s(found.run, found)
    if first_s is not None:
        first = found.arrived.at + first_s
        stamps = stamps._replace(last_token=first, ended=first)
    costliest = explain(found.arrived.id, stamps, found.seen).costliest
    if not costliest:
        return None
    guess = what_if(found, costliest[0].id)
    return guess if isinstance(guess, str) else guess._asdict()


# -- how it is shown -----------------------------------------------------------------------------------------------


def _text(shown: Shown, told: str | None) -> str:
    timing = shown.timing
    total = timing["total_s"] or 1e-9
    rows = []
    for part in timing["parts"]:
        share = part["seconds"] / total
        name = f"{part['name']}: {part['reason']}" if part.get("reason") else part["name"]
        bar = "#" * round(_BAR * share)
        rows.append((name, f"{part['seconds']:.4f} s", f"{100 * share:.1f} %", bar))
    rows.append(("total", f"{timing['total_s']:.4f} s", "", ""))
    lines = [shown.head, "", table(("part", "time", "share", ""), rows)]
    if timing["costliest"]:
        costs = [
            (one["id"] or "(another key's)", f"{one['seconds']:.4f} s")
            for one in timing["costliest"]
        ]
        lines += ["", table(("cost it most", "time"), costs)]
    if not timing["num_steps"]:
        lines += ["", "No steps are on record: the engine's part is what the request itself knows."]
    if told is not None:
        lines += ["", told]
    return "\n".join(lines)


def guess_text(guess: dict[str, Any] | str | None) -> str:
    """A replay is off by as much with the other as without: what counts is the difference."""
    if guess is None:
        return "Nobody else cost it anything before its first token."
    if isinstance(guess, str):
        return f"What would have been without who cost it most before its first token cannot be told: {guess}."
    simulated, without = guess["simulated_s"], guess["without_s"]
    actual = simulated if guess["actual_s"] is None else guess["actual_s"]
    if abs(simulated - actual) > max(_NEAR_S, max(simulated, actual) / 2):
        return (
            f"When the first token would have come without {guess['without']} cannot be told: by replay it comes after "
            f"{simulated:.3f} s with everyone, and it came after {actual:.3f} s."
        )
    saved = min(simulated - without, actual)
    said = (
        f"not sooner: it came after {actual:.3f} s"
        if saved < max(_LEAST_S, _LEAST_SHARE * actual)
        else f"after {actual - saved:.3f} s, not {actual:.3f} s"
    )
    return (
        f"Without {guess['without']} the first token would have come {said} "
        f"(by replay: {without:.3f} s without it, {simulated:.3f} s with it)."
    )
