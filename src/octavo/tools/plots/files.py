"""The folder that `--out` names: made and tried before anything is measured, written at the end."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from octavo.core.errors import ConfigError
from octavo.tools.plots import png
from octavo.tools.plots.chart import Chart


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --out and --no-png."""
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="Write JSON, CSV, an HTML page and a PNG there (the PNG needs octavo[plots]).",
    )
    parser.add_argument("--no-png", action="store_true", help="Write no PNG.")


def prepare(args: argparse.Namespace) -> Path | None:
    """The folder, made; None where none was asked for.

    Raises:
        ConfigError: it cannot be made, or a PNG could not be written at the end.
    """
    if args.out is None:
        return None
    if not args.no_png:
        png.check()
    folder = Path(args.out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot(folder, error) from error
    return folder


def write_all(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files by name. Raises ConfigError where they cannot be."""
    for name, text in texts.items():
        try:
            (folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise _cannot(folder / name, error) from error


def write_png(path: Path, charts: Sequence[Chart]) -> None:
    """Write the charts. Raises ConfigError where they cannot be."""
    try:
        png.write(charts, path)
    except OSError as error:
        raise _cannot(path, error) from error


def _cannot(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"--out: {path} cannot be written: {error.strerror}.", code="E-FILE-01")
