"""The control groups that this process is in: folders whose files bound its memory and its cores.

In a container with a namespace of its own the process seems to be at the root, and the root's files are its limits. Under a
service manager (`systemd-run -p MemoryMax=8G`) or a batch system they are those of its group and of each group above.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def folders(root: Path = ROOT, *, controller: str, own: Path = OWN) -> list[Path]:
    """Where limits may stand, innermost first and `root` last, of versions 2 and 1; of what `own` says, whatever exists.

    Of version 1 a folder is that of `controller`: `root/controller/...`.
    """
    found: list[Path] = []
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found += _upwards(root, path)
        elif controller in controllers.split(","):
            found += _upwards(root / controller, path)
    return list(dict.fromkeys([*found, root, root / controller]))


def _upwards(top: Path, path: str) -> list[Path]:
    """Existing folders from `top/path` up to, and without, `top`. Names of `..` are a namespace's way to say: not yours."""
    parts = [part for part in path.split("/") if part]
    if ".." in parts:
        return []
    within = (top.joinpath(*parts[:count]) for count in range(len(parts), 0, -1))
    return [folder for folder in within if folder.is_dir()]
