"""The model format `mlx`: a folder with config.json, safetensors and tokenizer.json.

A folder is found by its config.json and at least one *.safetensors file; quantized MLX folders and plain Hugging
Face ones look alike and mlx-lm runs both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.engine import ModelFormat
from paceline.errors import ModelFileError
from paceline.types import ModelFacts, ModelKind
from paceline.untrusted_json import parse

if TYPE_CHECKING:
    from paceline.formats.safetensors import SafeTensor

_CONFIG_BYTES = 1 << 22
_CHAT_TEMPLATE_BYTES = 1 << 20
_MODULES = "modules.json"
"""What a text passes through, as sentence-transformers write it."""
_JSON = frozenset({"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", _MODULES})
_DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "F16": "fp16", "BF16": "bf16", "F32": "fp32"}


class MlxFormat(ModelFormat):
    """Finds MLX model folders and reads their metadata."""

    name = "mlx"
    version = 2

    def find(self, folder: Path) -> Iterable[Path]:
        from paceline.formats.walk import walk

        for directory, names in walk(folder):
            if "config.json" in names and any(name.endswith(".safetensors") for name in names):
                yield Path(directory)

    def files(self, path: Path) -> Sequence[Path]:
        try:
            names = os.listdir(path)  # noqa: PTH208 - names are enough, and cheaper
        except OSError as error:
            raise ModelFileError(f"{path.name} cannot be read: {error.strerror or error}") from error
        return tuple(path / name for name in sorted(names) if name in _JSON or _is_weights(name))

    def read(self, path: Path) -> ModelFacts:
        from paceline.formats.bounded_json import read_json
        from paceline.formats.safetensors import read_safetensors
        from paceline.formats.tokenizer_json import pairing_facts

        config = read_json(path / "config.json", _CONFIG_BYTES)
        tokenizer = path / "tokenizer_config.json"
        tokenizer_config = read_json(tokenizer, _CONFIG_BYTES) if tokenizer.is_file() else {}
        tensors: dict[str, SafeTensor] = {}
        weights = [file for file in self.files(path) if _is_weights(file.name)]
        if not weights:
            raise ModelFileError(f"{path.name} holds no weights (*.safetensors)")
        for file in weights:
            tensors |= read_safetensors(file)
        bos, eos = (_token(tokenizer_config.get(key)) for key in ("bos_token", "eos_token"))
        template = _chat_template(path, tokenizer_config)
        return ModelFacts(
            kind=ModelKind.EMBEDDINGS if _pools(path) else _kind(config),
            size_bytes=sum(file.stat().st_size for file in weights),
            name=path.name,
            arch=_text(config.get("model_type")),
            quantization=_quantization(config, tensors),
            parameters=_parameters(config, tensors) or None,
            max_context_length=_context_length(config),
            chat_template=template,
            bos_token=bos,
            eos_token=eos,
            capabilities=("tool_use",) if template and re.search(r"\btools\b", template) else (),
            pairing=pairing_facts(path, bos, eos),
        )


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") and not name.startswith(".")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _token(value: object) -> str | None:
    """A special token is written as its text, or as an object that holds the text."""
    return _text(value.get("content")) if isinstance(value, dict) else _text(value)


def _chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    try:
        if file.is_file() and file.stat().st_size <= _CHAT_TEMPLATE_BYTES:
            return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{folder.name}/{file.name} cannot be read: {error}") from error
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return _text(template)


def _pools(folder: Path) -> bool:
    """Whether its states are to become one vector, whatever else the model could do with them."""
    from paceline.formats.bounded_json import read_bytes

    file = folder / _MODULES
    if not file.is_file():
        return False
    try:
        modules = parse(read_bytes(file, _CONFIG_BYTES))
    except ValueError as error:
        raise ModelFileError(f"{folder.name}/{file.name} is not JSON: {error}") from None
    kinds = [m.get("type") for m in modules if isinstance(m, dict)] if isinstance(modules, list) else []
    return any(isinstance(kind, str) and kind.rpartition(".")[2] == "Pooling" for kind in kinds)


def _kind(config: Mapping[str, Any]) -> ModelKind:
    model_type = _text(config.get("model_type")) or ""
    names = config.get("architectures")
    architectures = [n for n in names if isinstance(n, str)] if isinstance(names, list) else []
    if "vision_config" in config:
        return ModelKind.VLM
    generates = any("CausalLM" in n or "ConditionalGeneration" in n for n in architectures)
    if not generates and (model_type.endswith("bert") or any(n.endswith("Model") for n in architectures)):
        return ModelKind.EMBEDDINGS
    return ModelKind.LLM


def _quantization(config: Mapping[str, Any], tensors: Mapping[str, SafeTensor]) -> str | None:
    bits, mode = _bits(config)
    if mode and mode != "affine":
        return mode
    if bits:
        return f"{bits}bit"
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size_bytes
    dominating = max(sizes, key=lambda dtype: sizes[dtype]) if sizes else None
    return _DTYPES.get(dominating or "") or _DTYPES.get(str(config.get("torch_dtype") or config.get("dtype")))


def _bits(config: Mapping[str, Any]) -> tuple[int | None, str | None]:
    quantization = config.get("quantization") or config.get("quantization_config")
    if not isinstance(quantization, dict):
        return None, None
    bits, mode = quantization.get("bits"), quantization.get("mode")
    return bits if type(bits) is int and 1 <= bits <= 32 else None, _text(mode)


def _parameters(config: Mapping[str, Any], tensors: Mapping[str, SafeTensor]) -> int:
    """Elements of all weights. Quantized ones are packed into 32-bit words and carry scales, which do not count."""
    bits, _ = _bits(config)
    layers = config.get("quantization")
    total = 0
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        packed = tensors.get(f"{layer}.weight")
        if part in ("scales", "biases") and packed is not None and packed.dtype == "U32":
            continue
        elements = tensor.elements
        if part == "weight" and tensor.dtype == "U32" and f"{layer}.scales" in tensors:
            own = layers.get(layer) if isinstance(layers, dict) else None
            layer_bits = own.get("bits") if isinstance(own, dict) else bits
            if type(layer_bits) is int and 1 <= layer_bits <= 32:
                elements = elements * 32 // layer_bits
        total += elements
    return total


def _context_length(config: Mapping[str, Any]) -> int | None:
    inner = config.get("text_config")
    for place in (config, inner if isinstance(inner, dict) else {}):
        value = place.get("max_position_embeddings")
        if type(value) is int and value > 0:
            return value
    return None
