"""Runtimes as an installation leaves them, made without one: an interpreter, a library, their hashes, a manifest."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from paceline.store import Store, health
from paceline.store.manifest import FILES, MANIFEST
from paceline.types import Runtime


def stage(folder: Path, version: str, *, formats: tuple[str, ...] = ("gguf",), platform: str = "linux-cpu") -> str:
    """Write a whole runtime into `folder`; returns its id."""
    make_environment(folder, version)
    files = health.describe_files(folder)
    (folder / FILES).write_text(json.dumps(files))
    manifest: dict[str, Any] = {
        "schema_version": 1,
        "id": f"engine-{platform}@{version}",
        "engine": "engine",
        "version": version,
        "platform": platform,
        "channel": "stable",
        "formats": formats,
        "features": [],
        "installed_at": "2026-01-01T00:00:00+00:00",
        "lock": [],
        "build_lock": [],
        "config_settings": {},
        "size_bytes": sum(entry.get("size", 0) for entry in files.values()),
        "python": health.base_python(sys.executable),
        "libc": health.libc(),
        "files_sha256": hashlib.sha256((folder / FILES).read_bytes()).hexdigest(),
        "quick_check": health.quick_part(files),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return str(manifest["id"])


def make_environment(folder: Path, version: str) -> None:
    """What stands for `folder`/env of a runtime with packages."""
    (folder / "env" / "bin").mkdir(parents=True)
    (folder / "env" / "bin" / "python").symlink_to(sys.executable)
    (folder / "env" / "engine.so").write_text(f"the library of {version}")
    (folder / "env" / "engine.py").write_text(f"VERSION = {version!r}\n")


def add(store: Store, version: str = "1.0", **options: Any) -> Runtime:
    """Publish a whole runtime in `store`."""
    staged = store.staging / f"made.{version}"
    return store.publish(staged, stage(staged, version, **options))


def change_manifest(runtime: Runtime, **changes: Any) -> None:
    file = runtime.directory / MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refuse_to_move_folders(step: str, path: Path) -> None:
    """An observer of `transaction`: fail as overlayfs does with folders that a container's image brought."""
    if step == "exchange" or (step == "rename" and path.is_dir()):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(path))
