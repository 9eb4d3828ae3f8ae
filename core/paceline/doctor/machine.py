"""What this machine can run, whether packages can be fetched, and who has the port of the local API."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from paceline.doctor.finding import Finding, Patient, Status
from paceline.types import Compatibility

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paceline.types import Release, Verdict

_GPU = {
    *(Compatibility.GPU_DRIVER_UNSUPPORTED, Compatibility.GPU_SURVEY_UNSUCCESSFUL, Compatibility.NO_SUPPORTED_GPUS),
    Compatibility.GPU_TARGETS_REQUIRED_BUT_NONE_SPECIFIED,
}
_TOOLS = {Compatibility.MISSING_LIBRARIES, Compatibility.LIBRARY_OUTDATED}


def releases(patient: Patient) -> Iterator[Finding]:
    """The best release for this machine, and what keeps better ones from running."""
    from paceline.registry import load_registry
    from paceline.survey import take_survey
    from paceline.verdict import rank

    facts = take_survey(patient.environ, cache=patient.cache)
    known, holds = load_registry(patient.plugins, home=patient.store.home).releases, patient.store.selection().holds
    ranked = rank([r for r in known if r.id not in holds], facts)
    best = next((release for release, verdict in ranked if verdict.ok), None)
    if best is None:
        reason = _nearest(ranked)
        text = "this machine can run no release that is known" + (f": {reason.message}" if reason else "")
        yield Finding("machine", Status.PROBLEM, text, (reason and reason.help) or "`paceline runtime survey` says why")
    else:
        yield Finding("machine", Status.OK, f"the best release for this machine is {best.id}")
    # What a mended driver or an installed compiler would make possible, once for each reason.
    better = [(r, v) for r, v in ranked if not v.ok and (best is None or r.rank > best.rank)]
    told = set()
    for release, verdict in better:
        if verdict.status in _GPU | _TOOLS and verdict.message not in told:
            told.add(verdict.message)
            yield Finding("machine", Status.NOTE, f"{release.id} would be better: {verdict.message}", verdict.help)
    cards = [gpu.name for gpu in facts.gpus.value or () if gpu.make in ("nvidia", "apple")]
    if cards and not any(_for_gpu(r.id, known) for r in patient.store.runtimes()) and best and best.requires.gpu:
        text = f"{', '.join(cards)} is here, and no installed runtime uses it"
        yield Finding("machine", Status.NOTE, text, f"paceline runtime get {best.id}")


def index(patient: Patient) -> Iterator[Finding]:
    """Whether uv gets an answer from the package index that is configured."""
    from paceline import network
    from paceline.packages.index import why_unreachable

    if network.is_offline(patient.environ):
        text = "the package index was not asked: Paceline is offline"
        yield Finding("index", Status.NOTE, text, network.HELP)
    elif reason := why_unreachable(patient.environ):
        text = f"the package index does not answer: {reason}"
        way_out = (
            "see to the network, HTTPS_PROXY and UV_DEFAULT_INDEX; what is cached can be installed all the same, with "
            "--offline"
        )
        yield Finding("index", Status.PROBLEM, text, way_out)
    else:
        yield Finding("index", Status.OK, "the package index answers")


def port(patient: Patient) -> Iterator[Finding]:
    """Whether `paceline serve` can listen where it does by default, and who does so now."""
    address, number = patient.address
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, number))
        except OSError as error:
            who = _listener(number)
            text = f"port {number} of {address} is taken by {who}" if who else f"port {number}: {error.strerror}"
            yield Finding("port", Status.NOTE, text, "stop it, or `paceline serve --port` another")
        else:
            yield Finding("port", Status.OK, f"port {number} of {address} is free")


def _listener(number: int) -> str | None:
    """The process that listens on a port, where the system tells."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            at = connection.laddr
            if at and at.port == number and connection.status == psutil.CONN_LISTEN and connection.pid:
                command = " ".join(psutil.Process(connection.pid).cmdline())[:80]
                return f"process {connection.pid} ({command})"
    except (psutil.Error, OSError):
        return None
    return None


def _nearest(ranked: list[tuple[Release, Verdict]]) -> Verdict | None:
    """The refusal that this machine came closest to meeting."""
    refused = [v for _, v in ranked if not v.ok]
    return next((v for v in refused if v.status in _TOOLS), next(iter(refused), None))


def _for_gpu(runtime_id: str, known: tuple[Release, ...]) -> bool:
    return any(r.id == runtime_id and r.requires.gpu is not None for r in known)
