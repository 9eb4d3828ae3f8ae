"""How uv is called: which program, what it sees of the environment, which Python it builds on."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from paceline import network, refusals
from paceline.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def uv_environment(environ: Mapping[str, str], *, pinned: bool = True) -> dict[str, str]:
    """What uv and the compilers it starts get to see of `environ`.

    Kept are the system's own variables, proxies, certificates, the settings of the package index and of compilers.
    Everything that could change what is installed, or how, stays out. Where only pip is told of an index, uv is told
    the same; pip's way to treat several indexes as one is safe to follow when every package is pinned by hash. That
    pip has no index, uv has to be told on its command line: see `uv_command`.
    """
    kept = {name: value for name, value in environ.items() if _KEPT.fullmatch(name.upper())}
    if network.is_offline(environ):
        kept["UV_OFFLINE"] = "1"
    for theirs, ours in _OF_PIP.items():
        if environ.get(theirs) and not any(name in kept for name in ours):
            kept[ours[0]] = environ[theirs]
            if theirs == "PIP_EXTRA_INDEX_URL" and pinned:
                kept.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    return kept


def is_heeded(name: str, environ: Mapping[str, str]) -> bool:
    """Whether uv is told of the variable `name` of `environ`, under this name or under uv's own."""
    overruled = any(environ.get(ours) for ours in _OF_PIP.get(name, ()))
    return _KEPT.fullmatch(name.upper()) is not None or (name in _OF_PIP and not overruled)


def uv_command(arguments: Sequence[str | Path], environment: Mapping[str, str]) -> list[str | Path]:
    """The command line of uv for `arguments`, in an environment made by `uv_environment`.

    Where PIP_NO_INDEX says so, no index is asked; uv knows no variable for it. With `--offline` it may stay: what is
    left then are indexes of files on this machine. Raises BuildError when uv is missing.
    """
    from uv import find_uv_bin

    try:
        program = find_uv_bin()
    except FileNotFoundError:
        raise BuildError("uv, which makes the environments, is missing", help="reinstall Paceline") from None
    asks = arguments[0] in ("pip", "build") and "--offline" not in arguments
    alone = asks and network.is_on(environment.get("PIP_NO_INDEX", ""))
    return [program, *arguments, *(["--no-index"] if alone else [])]


def way_out(said: str) -> str | None:
    """What to do when uv failed, from what it said: of a file it was refused, of a lock, of being offline; or None."""
    if waited_in_vain(said):
        return "another process works on uv's cache, such as `uv cache clean`: try again when it has ended"
    refused = refusals.told_by_program(said)
    if refused is not None:
        where = refused.filename or "the home and the cache"
        if help := refusals.way_out(refused, where, refusals.EITHER):
            return help
    return network.HELP if network.is_offline() else None


def waited_in_vain(said: str) -> bool:
    """Whether uv failed because another process held a lock for too long (UV_LOCK_TIMEOUT, in seconds)."""
    return "when waiting for lock on" in said


def base_interpreter() -> str:
    """The Python that runtimes are built on: the one below any virtual environment this process runs in."""
    return getattr(sys, "_base_executable", None) or sys.executable


_KEPT = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LC_\w+|TZ|TMPDIR|TEMP|TMP|XDG_\w+|NETRC"
    r"|USERPROFILE|APPDATA|LOCALAPPDATA|PROGRAMDATA|PROGRAMFILES.*|SYSTEMROOT|SYSTEMDRIVE|WINDIR|COMSPEC|PATHEXT"
    r"|INCLUDE|LIB|LIBPATH|VS\w+|VC\w+|NUMBER_OF_PROCESSORS|PROCESSOR_\w+"
    r"|(HTTP|HTTPS|ALL|NO|FTP)_PROXY|SSL_CERT_(FILE|DIR)|SSL_CLIENT_CERT"
    r"|PIP_NO_INDEX|UV_(INDEX|INDEX_\w+|DEFAULT_INDEX|EXTRA_INDEX_URL|FIND_LINKS|KEYRING_PROVIDER|INSECURE_HOST|OFFLINE)"
    r"|UV_(CONFIG_FILE|NO_CONFIG|HTTP_\w+|REQUEST_TIMEOUT|NATIVE_TLS|SYSTEM_CERTS|CONCURRENT_\w+|LINK_MODE|LOCK_TIMEOUT)"
    r"|CC|CXX|CFLAGS|CXXFLAGS|CPPFLAGS|LDFLAGS|AR|LD|LIBRARY_PATH|CPATH|PKG_CONFIG_PATH|MAKEFLAGS"
    r"|CMAKE_(BUILD_PARALLEL_LEVEL|GENERATOR|PREFIX_PATH|CUDA_ARCHITECTURES)|SDKROOT|DEVELOPER_DIR"
    r"|MACOSX_DEPLOYMENT_TARGET|CUDACXX|CUDAHOSTCXX|CUDA_(HOME|PATH)\w*|NVCC_\w+"
)
_OF_PIP = {
    "PIP_INDEX_URL": ("UV_DEFAULT_INDEX", "UV_INDEX_URL"),
    "PIP_EXTRA_INDEX_URL": ("UV_EXTRA_INDEX_URL", "UV_INDEX"),
    "PIP_FIND_LINKS": ("UV_FIND_LINKS",),
    "PIP_CERT": ("SSL_CERT_FILE",),
}
