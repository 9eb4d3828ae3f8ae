"""`llama-server`, built from the llama.cpp source that the selected runtime was built from, with the same flags.

The source is the one inside the runtime's llama-cpp-python source distribution, whose hash the registry pins; pip
downloads it from where this machine's pip is configured to. Source and binary stay in the cache folder.

    python benchmarks/peer.py            builds it (minutes, once) and prints where it is
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from paceline import paths, plugins
from paceline.errors import BuildError, NotFoundError, PacelineError
from paceline.registry import load_registry
from paceline.types import Package, Release
from servers import serving
from worker import selected_runtime

PACKAGE = "llama-cpp-python"
_FLAGS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "ON",
    "LLAMA_BUILD_COMMON": "ON",
    "LLAMA_BUILD_TOOLS": "ON",
    "LLAMA_BUILD_SERVER": "ON",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}
"""What a server needs beside the runtime's own flags: no page for browsers, no TLS."""


@dataclass(frozen=True)
class Source:
    """What the selected runtime was built from, and how."""

    package: Package
    flags: dict[str, str]
    """CMake definitions."""


def source_of(release: Release) -> Source:
    """Raises NotFoundError for a release that was not built from source."""
    package = next((p for p in release.recipe.packages if p.name == PACKAGE and p.source), None)
    if package is None:
        raise NotFoundError(f"{release.id} is not built from source, so its peer cannot be built alike")
    prefix = "cmake.define."
    settings = release.recipe.config_settings.get(PACKAGE, {})
    flags = {k.removeprefix(prefix): v for k, v in settings.items() if k.startswith(prefix)}
    flags.pop("LLAVA_BUILD", None)  # llama-cpp-python's own
    return Source(package, flags)


def llama_server() -> Path:
    """The binary, built if the cache lacks it. Raises BuildError with the end of the log."""
    folder, source = _folder()
    binary = folder / "build" / "bin" / "llama-server"
    if (folder / "complete").exists():
        return binary
    _build(folder, source)
    if not binary.exists():
        raise BuildError(f"the build left no {binary}")
    (folder / "complete").touch()
    return binary


@contextmanager
def running(
    main: Path, *, draft: Path | None = None, streams: int = 1, context: int = 2048, flags: Sequence[str] = ()
) -> Iterator[str]:
    """A started server; its address. `context` is per stream. Raises PacelineError when it does not come up."""
    command: list[str | Path] = [llama_server(), "--model", main, "--offline"]
    command += ["--parallel", str(streams), "--ctx-size", str(context * streams)]
    if draft is not None:
        command += ["--spec-draft-model", draft, "--spec-type", "draft-simple"]
    with serving([*command, *flags]) as url:
        yield url


def _folder() -> tuple[Path, Source]:
    runtime = selected_runtime()
    releases = load_registry(plugins.load()).releases
    release = next((r for r in releases if r.id == runtime.id), None)
    if release is None:
        raise NotFoundError(f"the registry no longer lists {runtime.id}", help="update the runtime")
    source = source_of(release)
    text = json.dumps([source.package.version, source.flags, _FLAGS], sort_keys=True)
    name = f"llama-server-{source.package.version}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return paths.cache() / "benchmarks" / name, source


def _build(folder: Path, source: Source) -> None:
    cmake = shutil.which("cmake")
    if cmake is None:
        raise BuildError("cmake is not installed", help="install cmake and a C++ compiler")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "build.log").open("w") as log:
        tree = _tree(folder, source.package, log)
        definitions = [f"-D{name}={value}" for name, value in (_FLAGS | source.flags).items()]
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        build = folder / "build"
        _run([cmake, "-S", str(tree), "-B", str(build), *generator, *definitions], log)
        jobs = str(os.cpu_count() or 1)
        _run([cmake, "--build", str(build), "--target", "llama-server", "--parallel", jobs], log)


def _tree(folder: Path, package: Package, log: TextIO) -> Path:
    """llama.cpp's source, unpacked."""
    unpacked = folder / f"{PACKAGE.replace('-', '_')}-{package.version}"
    tree = unpacked / "vendor" / "llama.cpp"
    if not (folder / "unpacked").exists():
        wanted = folder / "requirements.txt"
        hashes = " ".join(f"--hash=sha256:{digest}" for digest in package.sha256)
        wanted.write_text(f"{PACKAGE}=={package.version} {hashes}\n")
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE, "--require-hashes"]
        _run([*pip, "--requirement", str(wanted), "--dest", str(folder)], log)
        with tarfile.open(folder / f"{unpacked.name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
        (folder / "unpacked").touch()
    return tree


def _run(command: Sequence[str], log: TextIO) -> None:
    print(f"+ {' '.join(command)}", file=log, flush=True)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        tail = "\n".join(Path(log.name).read_text(errors="replace").splitlines()[-20:])
        raise BuildError(f"{Path(command[0]).name} failed:\n{tail}", help=f"the whole log is {log.name}")


def version() -> str:
    """As the server names its own build."""
    done = subprocess.run([llama_server(), "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"version: *(.+)", done.stdout + done.stderr)
    return found[1] if found else "unknown"


def main() -> int:
    try:
        binary = llama_server()
    except PacelineError as error:
        print(f"error: {error.message}", *([f"help: {error.help}"] if error.help else []), sep="\n", file=sys.stderr)
        return error.exit_status
    print(f"{binary} ({version()})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
