"""Which drafts fit which main models on MLX, from metadata alone.

Neither mlx-lm nor LM Studio's mlx-engine compares more than the sizes of the vocabularies, and equal sizes say
nothing: a draft that numbers its tokens otherwise proposes noise. Here every common token must have the same text.
Sizes may differ as far as llama.cpp allows, because families end their vocabularies differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from paceline import ModelFileError, PairStatus, PairVerdict
from paceline.formats.digests import MAX_SIZE_DIFFERENCE, same_tokens

if TYPE_CHECKING:
    from pathlib import Path

    from paceline import Model

RULES = ("default",)

_SAME_FAMILY = "use a small model of the same family, with the same tokenizer.json, as the draft"


def judge(main: Model, draft: Model, rules: str) -> PairVerdict:
    """The verdict; the tokenizers are opened only to quote the first token that differs."""
    a, b = main.facts.pairing, draft.facts.pairing
    refusal = next(_refusals(a, b), None)
    if refusal is not None:
        if refusal.status is PairStatus.TOKEN_DIFFERS:
            return _quote_difference(refusal, main.path, draft.path)
        return refusal
    return PairVerdict(PairStatus.COMPATIBLE, "the vocabularies agree", warnings=tuple(_warnings(a, b)))


def _refusals(main: Mapping[str, Any], draft: Mapping[str, Any]) -> Iterator[PairVerdict]:
    for facts, role in ((main, "main model"), (draft, "draft")):
        if facts.get("problem") or "digests" not in facts:
            yield PairVerdict(
                PairStatus.NO_VOCABULARY,
                f"the vocabulary of the {role} is unknown: {facts.get('problem') or 'its folder was not read'}",
            )
    if abs(main["size"] - draft["size"]) > MAX_SIZE_DIFFERENCE:
        yield PairVerdict(
            PairStatus.VOCABULARY_SIZE_DIFFERS,
            f"the vocabularies differ by {abs(main['size'] - draft['size'])} tokens ({main['size']} in the main model, "
            f"{draft['size']} in the draft); at most {MAX_SIZE_DIFFERENCE} are allowed",
            help=_SAME_FAMILY,
        )
    elif not same_tokens(main["digests"], main["size"], draft["digests"], draft["size"]):
        yield PairVerdict(PairStatus.TOKEN_DIFFERS, "the vocabularies differ in their tokens", help=_SAME_FAMILY)


def _warnings(main: Mapping[str, Any], draft: Mapping[str, Any]) -> Iterator[str]:
    if main["eos"] != draft["eos"]:
        yield (
            f"the end-of-sequence tokens differ ({main['eos'] or 'none'} and {draft['eos'] or 'none'}): "
            "the draft will guess the end of an answer wrongly"
        )
    if main["size"] != draft["size"]:
        yield f"the vocabularies have {main['size']} and {draft['size']} tokens: only the common ones can be drafted"


def _quote_difference(refusal: PairVerdict, main: Path, draft: Path) -> PairVerdict:
    try:
        pairs = zip(_texts(*_stamp(main)), _texts(*_stamp(draft)), strict=False)
    except (OSError, ModelFileError):
        return refusal
    for i, (a, b) in enumerate(pairs):
        if a != b:
            message = f"token {i} differs: {_quoted(a)} in the main model, {_quoted(b)} in the draft"
            return PairVerdict(refusal.status, message, help=refusal.help)
    return refusal


def _stamp(folder: Path) -> tuple[Path, int, int]:
    status = (folder / "tokenizer.json").stat()
    return folder / "tokenizer.json", status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4)
def _texts(path: Path, size: int, mtime_ns: int) -> list[bytes]:
    """Token texts of a tokenizer.json; size and time are there so that a changed file is read again."""
    from paceline.formats.tokenizer_json import read_token_texts

    return read_token_texts(path)


def _quoted(text: bytes) -> str:
    from paceline.formats.tokenizer_json import HOLE

    if text == HOLE:
        return "no token"
    shown = text.decode("utf-8", "backslashreplace")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return f"‘{shown[:60]}…’" if len(shown) > 60 else f"‘{shown}’"
