"""Which drafts llama.cpp accepts for which main models, from metadata alone.

The five rules are those of `common_speculative_are_compatible` in llama.cpp's `common/speculative.cpp`: vocabulary
type, begin-of-sequence token, end-of-sequence token, size, token texts. `today` is the text of commit 0c1e57098;
`2025-02` is that of February 2025, which compared both special tokens whether or not they are added, and did not
compare the types (it held them in booleans).
"""

from __future__ import annotations

from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from paceline import ModelFileError, PairStatus, PairVerdict
from paceline.formats.digests import MAX_SIZE_DIFFERENCE, same_tokens
from paceline.formats.gguf_vocabulary import FIRST_COMPARED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from paceline import Model

RULES = ("today", "2025-02")

_SAME_FAMILY = "use a small model of the same family, converted from the same tokenizer, as the draft"


def judge(main: Model, draft: Model, rules: str) -> PairVerdict:
    """The verdict under one of `RULES`; the files are opened only to quote the first token that differs."""
    a, b = main.facts.pairing, draft.facts.pairing
    refusal = next(_refusals(a, b, rules), None)
    if refusal is not None:
        if refusal.status is PairStatus.TOKEN_DIFFERS:
            return _quote_difference(refusal, main.path, draft.path)
        return refusal
    return PairVerdict(PairStatus.COMPATIBLE, "the vocabularies agree", warnings=tuple(_warnings(a, b)))


def _refusals(main: Mapping[str, Any], draft: Mapping[str, Any], rules: str) -> Iterator[PairVerdict]:
    yield from _unfit_models(main, draft)
    if rules != "2025-02" and main["type"] != draft["type"]:
        yield PairVerdict(
            PairStatus.VOCABULARY_TYPE_DIFFERS,
            f"the vocabularies are of different types: {main['type']} in the main model, {draft['type']} in the draft",
            help=_SAME_FAMILY,
        )
    always = rules == "2025-02"
    yield from _special_token(main, draft, "bos", "begin", PairStatus.BOS_DIFFERS, always)
    yield from _special_token(main, draft, "eos", "end", PairStatus.EOS_DIFFERS, always)
    if abs(main["size"] - draft["size"]) > MAX_SIZE_DIFFERENCE:
        yield PairVerdict(
            PairStatus.VOCABULARY_SIZE_DIFFERS,
            f"the vocabularies differ by {abs(main['size'] - draft['size'])} tokens ({main['size']} in the main model, "
            f"{draft['size']} in the draft); at most {MAX_SIZE_DIFFERENCE} are allowed",
            help=_SAME_FAMILY,
        )
    elif not same_tokens(main["digests"], main["size"], draft["digests"], draft["size"]):
        yield PairVerdict(PairStatus.TOKEN_DIFFERS, "the vocabularies differ in their tokens", help=_SAME_FAMILY)


def _unfit_models(main: Mapping[str, Any], draft: Mapping[str, Any]) -> Iterator[PairVerdict]:
    """What no vocabulary can make up for. llama.cpp finds these out when it loads or decodes."""
    if kind := draft.get("special_draft"):
        yield PairVerdict(
            PairStatus.SPECIAL_DRAFT,
            f"the draft is of the kind {kind}: it works only inside the model it was made for",
            help="use an ordinary small model of the same family as the draft",
        )
    for facts, role in ((main, "main model"), (draft, "draft")):
        if facts.get("special_draft") and role == "main model":
            yield PairVerdict(PairStatus.NOT_A_LANGUAGE_MODEL, "the main model is itself a draft for another model")
        if facts.get("generation") == "diffusion":
            yield PairVerdict(
                PairStatus.NOT_A_LANGUAGE_MODEL,
                f"the {role} ({facts['arch']}) is a diffusion model: it does not write token after token",
            )
        if facts.get("generation") == "encoder":
            yield PairVerdict(
                PairStatus.NOT_A_LANGUAGE_MODEL,
                f"the {role} ({facts['arch']}) is an encoder: it writes no text",
            )
        if facts.get("problem") or "digests" not in facts:
            yield PairVerdict(
                PairStatus.NO_VOCABULARY,
                f"the vocabulary of the {role} is unknown: {facts.get('problem') or 'its file was not read'}",
            )


def _special_token(
    main: Mapping[str, Any], draft: Mapping[str, Any], name: str, where: str, status: PairStatus, always: bool
) -> Iterator[PairVerdict]:
    """Rules two and three: one is added to prompts by both or neither, and if so it is the same id."""
    added = main[f"add_{name}"]
    if added != draft[f"add_{name}"]:
        who, other = ("main model", "draft") if added else ("draft", "main model")
        yield PairVerdict(
            status,
            f"the {who} adds a {where}-of-sequence token to its prompts, the {other} does not",
            help=_SAME_FAMILY,
        )
    elif (added or always) and main[name] != draft[name]:
        yield PairVerdict(
            status,
            f"the {where}-of-sequence tokens differ: id {_id(main[name])} in the main model, "
            f"id {_id(draft[name])} in the draft",
            help=_SAME_FAMILY,
        )


def _id(token: int) -> str:
    return "none" if token < 0 else str(token)


def _warnings(main: Mapping[str, Any], draft: Mapping[str, Any]) -> Iterator[str]:
    if main["pre"] != draft["pre"]:
        yield (
            f"the pre-tokenizers differ ({main['pre'] or 'none'} and {draft['pre'] or 'none'}): "
            "the draft may split text otherwise than the main model and guess worse"
        )
    for facts, role in ((main, "main model"), (draft, "draft")):
        if facts.get("memory") in ("recurrent", "hybrid"):
            yield (
                f"the {role} ({facts['arch']}) keeps a {facts['memory']} state, which cannot forget rejected tokens: "
                "it is saved before each draft, so a draft gains less"
            )
    if main["size"] != draft["size"]:
        yield f"the vocabularies have {main['size']} and {draft['size']} tokens: only the common ones can be drafted"


def _quote_difference(refusal: PairVerdict, main: Path, draft: Path) -> PairVerdict:
    try:
        pairs = zip(_texts(*_stamp(main)), _texts(*_stamp(draft)), strict=False)
    except (OSError, ModelFileError):
        return refusal
    for i, (a, b) in islice(enumerate(pairs), FIRST_COMPARED, None):
        if a != b:
            message = f"token {i} differs: {_quoted(a)} in the main model, {_quoted(b)} in the draft"
            return PairVerdict(refusal.status, message, help=refusal.help)
    return refusal


def _stamp(path: Path) -> tuple[Path, int, int]:
    status = path.stat()
    return path, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4)
def _texts(path: Path, size: int, mtime_ns: int) -> list[bytes]:
    """Token texts of a file; size and time are there so that a changed file is read again."""
    from paceline.formats.gguf_vocabulary import read_token_texts

    return read_token_texts(path)


def _quoted(text: bytes) -> str:
    shown = text.decode("utf-8", "backslashreplace")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return f"‘{shown[:60]}…’" if len(shown) > 60 else f"‘{shown}’"
