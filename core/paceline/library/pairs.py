"""Every (main, draft) of the library with its verdict.

The host refuses what no engine can pair; then the engine plugin's rules decide, from metadata alone. Their answers
depend on the two vocabularies only, so they are remembered by pairing key: models that share a vocabulary share
the answer, and a file that is copied or renamed keeps it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.errors import UsageError
from paceline.library.database import Database
from paceline.plugin_faults import FAULTS, say, show
from paceline.types import Model, ModelKind, PairStatus, PairVerdict
from paceline.untrusted_json import parse

if TYPE_CHECKING:
    from paceline.engine import Engine
    from paceline.library.library import Library
    from paceline.plugins import Plugins

_SCHEMA = "CREATE TABLE IF NOT EXISTS verdicts (question TEXT PRIMARY KEY, answer TEXT NOT NULL)"
_SELECT = "SELECT question, answer FROM verdicts"
_INSERT = "INSERT OR REPLACE INTO verdicts (question, answer) VALUES (?, ?)"


@dataclass(frozen=True)
class Pair:
    """A draft, the main model it would propose for, and whether it can."""

    main: Model
    draft: Model
    verdict: PairVerdict


def open_pairs(library: Library, plugins: Plugins) -> PairIndex:
    """The user's pair index."""
    from paceline import paths

    return PairIndex(library, plugins, paths.cache() / "pairs.sqlite")


class PairIndex:
    """Verdicts of pairs, remembered in `cache_file`, which may be deleted at any time. Safe to use from threads."""

    def __init__(self, library: Library, plugins: Plugins, cache_file: Path) -> None:
        self._library = library
        self._plugins = plugins
        self._memory = _Memory(cache_file)
        self._versions = {
            engine: f"{engine}@{plugin.version}" for plugin in plugins.plugins for engine in plugin.engines
        }

    def judge(self, main: Model, draft: Model, rules: str | None = None, *, engine: str | None = None) -> PairVerdict:
        """Whether `draft` can propose for `main`.

        `engine` asks the rules of that engine alone; without it one engine of the format that agrees is enough.
        `rules` names a variant of the rules (default: the one in force); raises `UsageError` for one nobody has.
        """
        verdict = self._judge(main, draft, self._engines(main.format, rules, engine), rules)
        self._memory.save()
        return verdict

    def pairs(self, main: Model | None = None, rules: str | None = None, *, refused: bool = True) -> list[Pair]:
        """Every pair, or those of one main model, ordered by main model and size of draft.

        Without `refused`, only the compatible ones. A model and itself are no pair.
        """
        models = self._library.models()
        by_size = sorted(models, key=lambda m: (m.facts.size_bytes, m.id))
        pairs: list[Pair] = []
        for candidate in (main,) if main else models:
            engines = self._engines(candidate.format, rules, None)
            for draft in by_size:
                if draft.id != candidate.id:
                    verdict = self._judge(candidate, draft, engines, rules)
                    if refused or verdict.ok:
                        pairs.append(Pair(candidate, draft, verdict))
        self._memory.save()
        return pairs

    def _judge(self, main: Model, draft: Model, engines: Sequence[Engine], rules: str | None) -> PairVerdict:
        refusal = self._refusal(main, draft)
        if refusal is not None:
            return refusal
        if not engines:
            return PairVerdict(
                PairStatus.UNREADABLE,
                f"no plugin provides an engine for {main.format} models, so nobody knows its rules",
                help="`paceline plugins` shows every plugin and why one is not active",
            )
        first: PairVerdict | None = None
        for engine in engines:
            verdict = self._ask(engine, main, draft, rules)
            if verdict.ok:
                return _with_host_warnings(verdict, main, draft)
            first = first or verdict
        assert first is not None
        return first

    def _refusal(self, main: Model, draft: Model) -> PairVerdict | None:
        """What no engine has to be asked about."""
        if main.id == draft.id or main.path == draft.path:
            return PairVerdict(PairStatus.SAME_MODEL, "a model cannot be its own draft", help="choose a smaller model")
        if main.format != draft.format:
            return PairVerdict(
                PairStatus.DIFFERENT_FORMAT,
                f"the main model is {self._format(main)}, the draft is {self._format(draft)}: "
                "both must run in the same engine",
                help=f"choose a draft in the format {main.format}",
            )
        for model, role in ((main, "main model"), (draft, "draft")):
            if model.facts.kind is ModelKind.EMBEDDINGS:
                return PairVerdict(
                    PairStatus.NOT_A_LANGUAGE_MODEL, f"the {role} {model.id} makes embeddings: it writes no text"
                )
        return _size_refusal(main, draft)

    def _format(self, model: Model) -> str:
        engines = " or ".join(e.name for e in self._plugins.engines_for(model.format))
        return f"{model.format} ({engines})" if engines else model.format

    def _engines(self, model_format: str, rules: str | None, engine: str | None) -> list[Engine]:
        """The engines to ask; those that judge by the same code are asked once."""
        if rules is not None:
            known = sorted({r for e in self._plugins.engines.values() for r in e.pair_rules})
            if rules not in known:
                raise UsageError(f"no engine has pair rules called {rules!r}", help=f"there are: {', '.join(known)}")
        if engine is not None:
            return [self._plugins.engine(engine)]
        asked: dict[object, Engine] = {}
        for candidate in self._plugins.engines_for(model_format):
            asked.setdefault(type(candidate).judge_pair, candidate)
        return list(asked.values())

    def _ask(self, engine: Engine, main: Model, draft: Model, rules: str | None) -> PairVerdict:
        variant = rules if rules in engine.pair_rules else engine.pair_rules[0]
        keys = main.facts.pairing.get("key"), draft.facts.pairing.get("key")
        question = f"{self._versions.get(engine.name, engine.name)}|{variant}|{keys[0]}|{keys[1]}"
        known = self._memory.recall(question) if all(keys) else None
        if known is not None:
            return known
        try:
            verdict = engine.judge_pair(main, draft, variant)
        except FAULTS as error:
            return _could_not_judge(engine, say(error))
        if not isinstance(verdict, PairVerdict):
            return _could_not_judge(engine, f"it answered {show(verdict)}")
        if all(keys):
            self._memory.remember(question, verdict)
        return verdict


def _could_not_judge(engine: Engine, why: str) -> PairVerdict:
    """A plugin's own bug; it is not remembered, so that a repaired plugin is asked again."""
    return PairVerdict(PairStatus.UNREADABLE, f"engine {engine.name} could not judge the pair: {why}")


def _size_refusal(main: Model, draft: Model) -> PairVerdict | None:
    """A draft pays only if its step is cheaper: fewer bytes to read and no more parameters to compute with."""
    a, b = main.facts, draft.facts
    if b.size_bytes < a.size_bytes and not (a.parameters and b.parameters and b.parameters > a.parameters):
        return None
    return PairVerdict(
        PairStatus.DRAFT_NOT_SMALLER,
        f"the draft is not smaller than the main model ({_measure(b.size_bytes, b.parameters)}; "
        f"main model {_measure(a.size_bytes, a.parameters)})",
        help="choose a draft a good deal smaller than the main model, a tenth of it for example",
    )


def _measure(size_bytes: int, parameters: int | None) -> str:
    size = f"{size_bytes / 1e6:,.1f} MB"
    return f"{size}, {parameters / 1e6:,.1f} M parameters" if parameters else size


def _with_host_warnings(verdict: PairVerdict, main: Model, draft: Model) -> PairVerdict:
    """What depends on more than the vocabularies."""
    a, b = main.facts, draft.facts
    warnings = list(verdict.warnings)
    if a.max_context_length and b.max_context_length and b.max_context_length < a.max_context_length:
        warnings.append(
            f"the draft's context ends at {b.max_context_length} tokens, the main model's at {a.max_context_length}: "
            "past that there is no drafting"
        )
    if a.parameters and a.parameters == b.parameters:
        warnings.append("the draft has as many parameters as the main model: a gain is unlikely")
    return replace(verdict, warnings=tuple(warnings)) if len(warnings) > len(verdict.warnings) else verdict


class _Memory:
    """Verdicts by question, in memory and in a file."""

    def __init__(self, file: Path) -> None:
        self._database = Database(file, _SCHEMA)
        self._lock = threading.Lock()
        self._verdicts: dict[str, PairVerdict] | None = None
        self._unsaved: dict[str, PairVerdict] = {}

    def recall(self, question: str) -> PairVerdict | None:
        if self._verdicts is None:
            with self._lock:
                self._verdicts = self._load()
        return self._verdicts.get(question)

    def remember(self, question: str, verdict: PairVerdict) -> None:
        with self._lock:
            if self._verdicts is not None:
                self._verdicts[question] = verdict
            self._unsaved[question] = verdict

    def save(self) -> None:
        if not self._unsaved:
            return
        with self._lock:
            unsaved, self._unsaved = self._unsaved, {}
        self._database.write(_INSERT, [(question, _encode(verdict)) for question, verdict in unsaved.items()])

    def _load(self) -> dict[str, PairVerdict]:
        verdicts = {}
        for question, answer in self._database.select(_SELECT):
            try:
                verdicts[question] = _decode(answer)
            except (ValueError, TypeError):
                continue
        return verdicts


def _encode(verdict: PairVerdict) -> str:
    return json.dumps([verdict.status.value, verdict.message, verdict.help, list(verdict.warnings)])


def _decode(answer: str) -> PairVerdict:
    status, message, help, warnings = parse(answer)
    return PairVerdict(PairStatus(status), message, help, tuple(warnings))
