"""The manifest of an installed runtime: the file that, being there and readable, makes a folder count."""

from __future__ import annotations

from pathlib import Path

from paceline.runtime import Runtime
from paceline.untrusted_json import read_object

MANIFEST = "manifest.json"
FILES = "files.json"
"""Size and sha256 of every file of a runtime, and the target of every link; the manifest holds its hash."""
SCHEMA_VERSION = 1


def read_runtime(folder: Path) -> Runtime | None:
    """The runtime in `folder`; None when its manifest is absent, unreadable, of a newer host or of another name."""
    try:
        data = read_object(folder / MANIFEST)
        linked = data.get("linked")
        runtime = Runtime(
            engine=str(data["engine"]),
            version=str(data["version"]),
            platform=str(data["platform"]),
            formats=tuple(map(str, data["formats"])),
            features=tuple(map(str, data["features"])),
            directory=folder,
            python=Path(linked["python"]) if linked else python_of(folder / "env"),
            linked=Path(linked["path"]) if linked else None,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return runtime if data.get("schema_version") == SCHEMA_VERSION and runtime.id == folder.name else None


def foreign(folder: Path) -> str | None:
    """What the manifest in `folder` is where it is whole, or may be, and makes no runtime of that name: another's.

    None for one that is missing or damaged, and for that of a runtime.
    """
    try:
        data = read_object(folder / MANIFEST)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    version, name = data.get("schema_version"), data.get("id")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        return f"is of a newer Paceline (schema_version {version})"
    return f"is that of {name}" if isinstance(name, str) and name != folder.name else None


def python_of(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    windows = environment / "Scripts" / "python.exe"
    return windows if windows.exists() else environment / "bin" / "python"


def packages_of(environment: Path) -> tuple[Path, ...]:
    """The folders of packages of a virtual environment: one, or none where there is no environment."""
    return (*environment.glob("lib/python*/site-packages"), *environment.glob("Lib/site-packages"))
