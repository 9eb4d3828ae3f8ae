"""The model format `gguf`: one file, or shards named `…-00001-of-0000N.gguf`.

Projectors (`mmproj-*.gguf`) and later shards are never models of their own. Files without weights, adapters,
and drafts that work only with the model they were made for raise `ModelFileError` with that as the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.engine import ModelFormat
from paceline.errors import ModelFileError
from paceline.formats.ggml_types import FILE_TYPES, TENSOR_TYPES
from paceline.types import ModelFacts, ModelKind

if TYPE_CHECKING:
    from paceline.formats.gguf import GgufMetadata, GgufTensor

_SHARD = re.compile(r"(?P<base>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ext>\.gguf)", re.IGNORECASE)

# Architectures that exist only to see; those that may or may not (gemma3, ...) count as language models.
_VISION = frozenset({"qwen2vl", "qwen3vl", "qwen3vlmoe", "cogvlm", "hunyuan_vl", "paddleocr", "deepseek2-ocr"})
_NO_MODELS = {
    "clip": "is a vision projector: it belongs to a model and is none itself",
    "wavtokenizer-dec": "is an audio decoder, which no engine here runs",
    "pockettts": "is a speech model, which no engine here runs",
    "qwen3tts": "is a speech model, which no engine here runs",
}
_NO_MODEL_TYPES = {
    "adapter": "is an adapter: it belongs to a model and is none itself",
    "mmproj": "is a vision projector: it belongs to a model and is none itself",
    "imatrix": "is an importance matrix, not a model",
    "vocab": "holds a vocabulary and no weights",
}


class GgufFormat(ModelFormat):
    """Finds GGUF files and reads their metadata."""

    name = "gguf"
    version = 1

    def find(self, folder: Path) -> Iterable[Path]:
        from paceline.formats.walk import walk

        for directory, names in walk(folder):
            first_shards: dict[str, str] = {}
            for name in names:
                if not name.lower().endswith(".gguf") or "mmproj" in name.lower():
                    continue
                shard = _SHARD.fullmatch(name)
                # Names come sorted: of a set whose first shard is missing, the first present one is told of.
                if shard is None or first_shards.setdefault(shard["base"] + shard["count"], name) == name:
                    yield Path(directory, name)

    def files(self, path: Path) -> Sequence[Path]:
        shard = _SHARD.fullmatch(path.name)
        if shard is None:
            return (path,)
        count = int(shard["count"])
        names = (f"{shard['base']}-{i:05d}-of-{count:05d}{shard['ext']}" for i in range(1, count + 1))
        return tuple(path.with_name(name) for name in names)

    def read(self, path: Path) -> ModelFacts:
        from paceline.formats.gguf import read_gguf
        from paceline.formats.gguf_vocabulary import special_draft

        shards = self.files(path)
        if missing := [p.name for p in shards if not p.is_file()]:
            raise ModelFileError(
                f"{path.name} cannot be read: {len(missing)} of {len(shards)} shards are missing ({missing[0]}, ...)"
                if len(missing) > 1
                else f"{path.name} cannot be read: {missing[0]} is missing",
                help="download the missing files into the same folder",
            )
        metadata, *others = [read_gguf(shard) for shard in shards]
        tensors = [t for part in (metadata, *others) for t in part.tensors]
        if reason := _no_model(metadata, tensors):
            raise ModelFileError(f"{path.name} {reason}")
        if kind := special_draft(metadata, {t.name for t in tensors}):
            raise ModelFileError(
                f"{path.name} is a draft of the kind {kind}: it works only inside the model it was made for",
                help="use a small model of the same family as the draft",
            )
        return gguf_facts(metadata, tensors, sum(part.size_bytes for part in (metadata, *others)))


def gguf_facts(
    metadata: GgufMetadata, tensors: Sequence[GgufTensor] | None = None, size_bytes: int | None = None
) -> ModelFacts:
    """What the metadata of the first shard says; `tensors` and `size_bytes` are those of all shards together."""
    from paceline.formats.gguf_vocabulary import pairing_facts

    tensors = metadata.tensors if tensors is None else tensors
    arch = metadata.text("general.architecture")
    pairing = pairing_facts(metadata, {t.name for t in tensors})
    template = metadata.text("tokenizer.chat_template")
    return ModelFacts(
        kind=_kind(metadata, arch, pairing["generation"] == "encoder"),
        size_bytes=metadata.size_bytes if size_bytes is None else size_bytes,
        name=metadata.text("general.name"),
        arch=arch,
        quantization=_quantization(metadata, tensors),
        parameters=sum(t.elements for t in tensors) or None,
        max_context_length=metadata.integer(f"{arch}.context_length"),
        chat_template=template,
        bos_token=_token(metadata, pairing.get("bos")),
        eos_token=_token(metadata, pairing.get("eos")),
        capabilities=("tool_use",) if template and re.search(r"\btools\b", template) else (),
        pairing=pairing,
    )


def _no_model(metadata: GgufMetadata, tensors: Sequence[GgufTensor]) -> str | None:
    reason = _NO_MODEL_TYPES.get(metadata.text("general.type") or "")
    reason = reason or _NO_MODELS.get(metadata.text("general.architecture") or "")
    if reason is None and metadata.text("general.architecture") is None:
        return "does not say which architecture it has (general.architecture)"
    return reason or (None if tensors else "holds a vocabulary and no weights")


def _kind(metadata: GgufMetadata, arch: str | None, encoder: bool) -> ModelKind:
    if encoder or metadata.integer(f"{arch}.pooling_type"):
        return ModelKind.EMBEDDINGS
    return ModelKind.VLM if arch in _VISION else ModelKind.LLM


def _quantization(metadata: GgufMetadata, tensors: Sequence[GgufTensor]) -> str | None:
    named = FILE_TYPES.get(metadata.integer("general.file_type") or 0)
    if named and "general.file_type" in metadata.values:
        return named
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if tensor.type in TENSOR_TYPES:
            name = TENSOR_TYPES[tensor.type][0]
            sizes[name] = sizes.get(name, 0) + (tensor.size_bytes or 0)
    return max(sizes, key=lambda name: sizes[name]) if sizes else None


def _token(metadata: GgufMetadata, token: object) -> str | None:
    if not isinstance(token, int) or metadata.tokens is None or not 0 <= token < len(metadata.tokens):
        return None
    return metadata.tokens[token].decode("utf-8", "replace")
