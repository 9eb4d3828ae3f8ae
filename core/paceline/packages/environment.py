"""One isolated Python environment per runtime, made by uv: exactly the recipe's packages, every hash checked."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paceline import child
from paceline.errors import BuildError
from paceline.packages import byte_code, native_builds, wheel_records
from paceline.packages.depot import Depot
from paceline.packages.gathering import gather
from paceline.packages.locked import applies
from paceline.packages.uv import base_interpreter, uv_command, uv_environment, waited_in_vain, way_out
from paceline.progress import Phase
from paceline.store import transaction
from paceline.store.digests import Digests
from paceline.store.manifest import packages_of, python_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import TextIO

    from paceline.packages.gathering import Supply
    from paceline.progress import Progress
    from paceline.types import Package, Recipe

PACKAGES = "packages"
"""The folder, beside the environment, of the wheels that came from this machine."""

_TAIL_LINES = 30


@dataclass(frozen=True)
class Environment:
    """What was made."""

    python: Path
    """Its interpreter."""
    build_s: float | None
    """How long was compiled; None when nothing was."""
    digests: Digests
    """Knows the files that were read to check them."""


def make_environment(folder: Path, recipe: Recipe, *, cache: Path, supply: Supply, progress: Progress) -> Environment:
    """Make `folder`/env with the packages of `recipe`.

    All are pinned by hash. Those with a `file` are wheels in `folder`/packages. Leaves `folder`/requirements.txt, the
    lock it used, and `folder`/build.log. Wheels, also those built here, are kept under `cache`/uv and used again; what
    that lacks comes from `supply`, and where it cannot say, uv looks for itself. Every file is compared with what its
    package records. Raises BuildError that quotes the end of the log, DownloadError, and InstallError when the disk has
    no room.
    """
    environment = folder / "env"
    transaction.write_text(folder / "requirements.txt", lock_text(recipe.packages))
    transaction.write_text(folder / "build-constraints.txt", lock_text(recipe.build_packages))
    with (folder / "build.log").open("w", encoding="utf-8", buffering=1) as log:
        uv = _Uv(log, folder, recipe, progress)
        progress(Phase.ENVIRONMENT, message="making the environment")
        uv.run(["venv", "--relocatable", "--no-project", "--python", base_interpreter(), environment])
        python, digests = python_of(environment), Digests()
        if recipe.packages:
            if foreign := native_builds.foreign(cache, recipe):
                uv.run(["cache", "clean", *foreign, "--cache-dir", cache / "uv"])
            installer = _Installer(uv, recipe, python, cache, supply, progress)
            installer.install()
            progress(Phase.CHECK, message="comparing the files with what their packages record")
            if damaged := wheel_records.damaged(environment, digests):
                digests = installer.install_anew(damaged, environment)
            native_builds.note(cache, recipe, uv.built)
            _prune(environment, recipe.prune)
            byte_code.bring(environment, cache, digests)
    return Environment(python, uv.build_s, digests)


def build_wheel(folder: Path, name: str, recipe: Recipe, into: Path, *, cache: Path, progress: Progress) -> Path:
    """Build the package `name` from its source in `folder`, with the settings of `recipe`; returns the wheel in `into`.

    Raises BuildError that quotes the end of the log.
    """
    constraints = into / "build-constraints.txt"
    transaction.write_text(constraints, lock_text(recipe.build_packages))
    arguments: list[str | Path] = ["build", "--wheel", "--python", base_interpreter(), "--out-dir", into / "wheel"]
    if recipe.build_packages:
        arguments += ["--build-constraints", constraints]
    for package, settings in recipe.config_settings.items():
        if package == name:
            arguments += [f"--config-setting={key}={value}" for key, value in settings.items()]
    with (into / "build.log").open("w", encoding="utf-8", buffering=1) as log:
        progress(Phase.BUILD, message=name)
        _Uv(log, into, recipe, progress).run([*arguments, "--cache-dir", cache / "uv", "-v", folder])
    return next((into / "wheel").glob("*.whl"))


def lock_text(packages: Iterable[Package]) -> str:
    """Packages as a requirements file with hashes."""
    return "".join(_requirement(package) + "\n" for package in packages)


class _Installer:
    """Puts a recipe's packages into an environment."""

    def __init__(self, uv: _Uv, recipe: Recipe, python: Path, cache: Path, supply: Supply, progress: Progress) -> None:
        self._uv, self._recipe, self._cache, self._supply, self._progress = uv, recipe, cache, supply, progress
        self._options = _install_options(recipe, python, cache)
        self._depot = Depot(cache)

    def install(self, *options: str) -> None:
        """Have uv install what its cache and the depot hold, after filling the depot with what is missing.

        uv's cache is asked first, because what was built or unpacked of one index is unknown under another. Where the
        supply cannot say where files are, uv finds and fetches them itself.
        """
        arguments = [*self._options, *options, "-r", "requirements.txt"]
        missing = self._missing(options)
        if not missing and self._is_installed_from_here(arguments):
            return
        with self._depot.held(self._progress) as waited:
            if waited:
                missing = self._missing(options)
                if not missing and self._is_installed_from_here(arguments):
                    return
            brought = gather(missing, self._depot, self._supply, self._progress) if missing else None
            self._begin()
            self._uv.run([*arguments, *(self._from_here() if brought is not None else ())])
            builds = {sha256 for package in self._recipe.build_packages for sha256 in package.sha256}
            self._depot.drop(file for file in brought or () if file.sha256 not in builds)

    def install_anew(self, damaged: Mapping[str, str], environment: Path) -> Digests:
        """Install packages again whose copies in the cache were damaged, without those copies; what they are now."""
        self._uv.run(["cache", "clean", *damaged, "--cache-dir", self._cache / "uv"])
        self.install("--reinstall")
        digests = Digests()
        if still := wheel_records.damaged(environment, digests):
            files = ", ".join(f"{file} of {package}" for package, file in still.items())
            raise BuildError(f"what was installed is not what its packages record: {files}")
        return digests

    def _is_installed_from_here(self, arguments: Sequence[str | Path]) -> bool:
        """Whether uv could install everything without a network."""
        self._begin()
        return self._uv.succeeds([*arguments, *self._from_here()])

    def _begin(self) -> None:
        self._progress(Phase.PACKAGES, 0, len(self._recipe.packages))

    def _missing(self, options: Sequence[str]) -> list[Package]:
        """The packages that uv could not install without a network, with those that building them takes.

        The latter always: to plan a build, uv reads their files again, though it has unpacked them long ago.
        """
        offline = [*self._options, *options, *self._from_here()]
        published = [p for p in self._recipe.packages if applies(p) and not p.file]
        if not published or self._uv.has_all(offline, published):
            return []
        packages = [p for p in published if not self._uv.has_all(offline, [p])]
        if any(package.source for package in packages):
            packages += [p for p in self._recipe.build_packages if applies(p) and p not in packages]
        return packages

    def _from_here(self) -> list[str]:
        """Options that let uv take files of the depot, and nothing over a network.

        Mixing indexes is safe: every file is pinned by its hash.
        """
        index = ["--index", self._depot.index] if self._depot.index else []
        return ["--offline", "--index-strategy", "unsafe-best-match", *index]


def _install_options(recipe: Recipe, python: Path, cache: Path) -> list[str | Path]:
    arguments: list[str | Path] = ["pip", "install", "--python", python, "--no-deps", "--require-hashes"]
    for index in dict.fromkeys(p.index for p in recipe.packages if p.index):
        arguments += ["--index", index]
    # The hashes already say which files may be used. `--no-binary` for what is built here would add nothing, and makes
    # uv fetch and build it again whatever the cache holds.
    if recipe.build_packages:
        arguments += ["--build-constraints", "build-constraints.txt"]
    for name, settings in recipe.config_settings.items():
        for key, value in settings.items():
            arguments += ["--config-settings-package", f"{name}:{key}={value}"]
    return [*arguments, "--cache-dir", cache / "uv", "--no-progress", "-v"]


def _requirement(package: Package) -> str:
    text = f"{package.name} @ ./{PACKAGES}/{package.file}" if package.file else f"{package.name}=={package.version}"
    if package.marker:
        text += f" ; {package.marker}"
    return " \\\n    ".join([text, *(f"--hash=sha256:{digest}" for digest in package.sha256)])


class _Uv:
    """Runs uv, writes its output to the log and reads the progress out of it."""

    _STEP = re.compile(r"\[\s*(\d+)/(\d+)\] ")
    _BUILDING = re.compile(r"^\s*Building (\S+)$")
    _HERE = re.compile(r"^\s*(?:Downloaded|Built) (\S+)|^DEBUG Registry requirement already cached: (\S+)")
    _NOISE = re.compile(r"^(DEBUG|TRACE|INFO|WARN|\s+(uv|Caused by)\S* at)\b")

    def __init__(self, log: TextIO, folder: Path, recipe: Recipe, progress: Progress) -> None:
        self._log = log
        self._folder = folder
        self._progress = progress
        self._total = len(recipe.packages)
        self._env = uv_environment(os.environ)
        self._here: set[str] = set()
        self.built: set[str] = set()
        self._building = ""
        self._build_began: float | None = None
        self._tail: list[str] = []
        self.build_s: float | None = None
        """From the beginning of the first build to the end of the last."""

    def succeeds(self, arguments: Sequence[str | Path]) -> bool:
        try:
            self.run(arguments)
        except BuildError:
            return False
        return True

    def has_all(self, arguments: Sequence[str | Path], packages: Sequence[Package]) -> bool:
        """Whether uv could install `packages`, by itself and without building or unpacking any, as `arguments` say.

        "Would download" is what it says of everything that its cache does not hold ready, wherever it is.
        """
        with tempfile.TemporaryDirectory() as folder:
            wanted = Path(folder) / "wanted.txt"
            wanted.write_text(lock_text(packages), encoding="utf-8")
            status, said = self._ask(uv_command([*arguments, "--dry-run", "-r", wanted], self._env))
        if status and waited_in_vain(said):
            raise BuildError(
                f"what uv's cache holds cannot be seen: {said.splitlines()[-1].strip()}", help=way_out(said)
            )
        return not status and "Would download" not in said

    def _ask(self, command: Sequence[str | Path]) -> tuple[int, str]:
        """Run what only looks; returns its status and what it said."""
        lines = []
        with subprocess.Popen(
            command,
            env=self._env,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as looking:
            try:
                assert looking.stderr is not None
                for line in looking.stderr:
                    lines.append(line)
                    self._tell_of_waiting(line)
            except BaseException:
                looking.kill()
                raise
        return looking.returncode, "".join(lines)

    def _tell_of_waiting(self, line: str) -> None:
        if line.startswith("INFO Waiting to acquire"):
            self._progress(Phase.WAIT, message="another process works on uv's cache, waiting for it")

    def run(self, arguments: Sequence[str | Path]) -> None:
        command = uv_command(arguments, self._env)
        transaction.step("run uv", self._folder)
        self._log.write(f"$ uv {' '.join(map(str, arguments))}\n")
        status = child.run(command, env=self._env, cwd=self._folder, on_line=self._line)
        if status:
            said = self._quote()
            raise BuildError(f"uv {arguments[0]} failed with status {status}:\n{said}", help=way_out(said))

    def _line(self, line: str) -> None:
        self._log.write(line)
        self._tell_of_waiting(line)
        if not self._NOISE.match(line):
            self._tail = [*self._tail[-_TAIL_LINES:], line.rstrip()]
        if step := self._STEP.search(line[:40]):
            self._progress(Phase.BUILD, int(step[1]), int(step[2]), self._building)
        elif building := self._BUILDING.match(line):
            self._building = building[1]
            self._build_began = self._build_began or time.monotonic()
            self._progress(Phase.BUILD, 0, None, self._building)
        elif (here := self._HERE.match(line)) and self._total:
            self._here.add((here[1] or here[2]).partition("==")[0])
            self._progress(Phase.PACKAGES, min(len(self._here), self._total), self._total)
            if "Built " in line[:16]:
                self.built.add((here[1] or "").partition("==")[0])
                self.build_s = time.monotonic() - (self._build_began or time.monotonic())
        elif line.startswith("Prepared "):
            self._progress(Phase.PACKAGES, self._total, self._total)

    def _quote(self) -> str:
        return "\n".join(f"  {line}" for line in self._tail[-_TAIL_LINES:])


def _prune(environment: Path, paths: Iterable[str]) -> None:
    for packages in packages_of(environment):
        for path in paths:
            if (left := packages / path).exists():
                transaction.discard(left)
