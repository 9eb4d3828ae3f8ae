"""Models, tokenizers and key-value caches of mlx-lm. Nothing here decides anything.

Uses mlx-lm 0.32.2's `utils.load` and `models.cache`. Only local folders are read, and no code that a folder brings is
run: mlx-lm's own model classes are all there is.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import cache as caches
from mlx_lm.utils import load, maybe_set_recommended_wired_limit

from paceline_mlx_worker.spelling import speller
from paceline_worker.protocol import Fault

VERSION: str = version("mlx-lm")

Logits = np.ndarray[Any, np.dtype[np.float32]]

CHUNK = 512
"""Most tokens computed at once without logits."""

_FEW = 32
"""Up to so many tokens it costs less to compute their unused logits than to run the model twice."""


def start() -> None:
    """Let Apple's GPUs keep the weights resident, as mlx-lm does while it generates."""
    maybe_set_recommended_wired_limit()


def devices() -> list[dict[str, Any]]:
    """What MLX sees: name, kind and memory in bytes."""
    found = []
    for kind, name in ((mx.gpu, "gpu"), (mx.cpu, "cpu")):
        for i in range(mx.device_count(kind)):
            info = mx.device_info(mx.Device(kind, i))
            memory = info.get("memory_size") or info.get("total_memory")
            if memory is None and kind == mx.cpu:
                memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            found.append(
                {
                    "name": str(info.get("device_name") or name.upper()),
                    "description": str(info.get("architecture", "")),
                    "kind": name,
                    "memory_bytes": memory,
                }
            )
    return found


class Model:
    """A loaded MLX folder and its tokenizer."""

    def __init__(self, path: str, *, progress: Callable[[float], None]) -> None:
        if not Path(path, "config.json").is_file():
            raise Fault("load_failed", f"{path} is no folder with a config.json", path=path)
        try:
            self.net, wrapper, config = load(
                path, tokenizer_config={"trust_remote_code": False}, lazy=True, return_config=True
            )
            _read_weights(self.net, progress)
            logits = self.net(mx.array([[0]]), cache=caches.make_prompt_cache(self.net))
            mx.eval(logits)
            self.n_vocab: int = logits.shape[2]
            self._tokenizer = wrapper._tokenizer
            backend = self._tokenizer.backend_tokenizer
            self._speller = speller(json.loads(backend.decoder.__getstate__()) if backend.decoder else None)
            self._control = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
            self._ends = {*wrapper.eos_token_ids, *_end_ids(config), *_end_ids(_read_config(path))}
            self.n_ctx_train = _context_length(config)
        except Fault:
            raise
        except Exception as error:
            # Whatever a damaged or unknown folder makes mlx-lm raise.
            why = str(error) or type(error).__name__
            if "trust_remote_code" in why:
                why = "it needs Python code of its own, and no model's code is run here"
            raise Fault("load_failed", f"mlx-lm cannot load {path}: {why}", path=path) from error
        self.can_roll_back = caches.can_trim_prompt_cache(caches.make_prompt_cache(self.net))
        bos = self._tokenizer.bos_token_id
        self.bos: int | None = bos if isinstance(bos, int) else None
        self._pieces: dict[int, bytes] = {}

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids; special tokens written out in `text` become their ids."""
        text = text.encode("utf-8", errors="replace").decode()
        return list(self._tokenizer.encode(text, add_special_tokens=add_special))

    def piece(self, token: int) -> bytes:
        """The bytes a token adds to the output; control tokens add none."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self.spell(token, special=False)
        return known

    def spell(self, token: int, *, special: bool) -> bytes:
        """The bytes of a token, control tokens written out if `special`."""
        if token in self._control and not special:
            return b""
        text = self._tokenizer.backend_tokenizer.id_to_token(token)
        return b"" if text is None else self._speller(text)  # ids that only pad the matrix have no text

    def ends(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""
        return token in self._ends

    def close(self) -> None:
        del self.net
        gc.collect()
        mx.clear_cache()


class Context:
    """One sequence's state over a model: what is computed, and the logits of the last tokens computed."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.length = 0
        self._cache = caches.make_prompt_cache(model.net)
        self._logits: Any = None
        self._likeliest: list[int] | None = None
        self._rows: Logits | None = None

    def decode(self, tokens: Sequence[int], *, outputs: int) -> None:
        """Compute `tokens` after those computed before; the last `outputs` of them get logits."""
        silent = len(tokens) - outputs
        if silent > _FEW or not outputs:
            for start in range(0, silent, CHUNK):
                self._run(tokens[start : min(start + CHUNK, silent)])
                mx.eval([entry.state for entry in self._cache])
                mx.clear_cache()
            tokens = tokens[silent:]
        if outputs:
            self._logits = self._run(tokens)[0, -outputs:]
            self._likeliest = self._rows = None

    def likeliest(self, index: int) -> int:
        """The token with the highest of the logits at one of the outputs, the first of equals."""
        if self._likeliest is None:
            found: list[int] = mx.argmax(self._logits, axis=-1).tolist()
            self._likeliest = found
        return self._likeliest[index]

    def likeliest_with_probability(self) -> tuple[int, float]:
        """The likeliest token at the last output and its softmax probability."""
        logits = self._logits[-1].astype(mx.float32)
        token, probability = mx.argmax(logits), mx.exp(mx.max(logits) - mx.logsumexp(logits))
        mx.eval(token, probability)
        return int(token.item()), float(probability.item())

    def logits(self, index: int) -> Logits:
        """Logits at one of the outputs, shape (n_vocab,); not to be written to."""
        if self._rows is None:
            self._rows = np.asarray(self._logits.astype(mx.float32))
        row: Logits = self._rows[index]
        return row

    def could_take_back(self, more: int) -> bool:
        """Whether any part of the state could be taken back after `more` further tokens."""
        return all(_is_whole(entry, self.length + more) for entry in self._cache)

    def keep(self, length: int) -> bool:
        """Forget everything from position `length` on; False when this memory cannot."""
        excess = self.length - length
        if not self.could_take_back(0) or caches.trim_prompt_cache(self._cache, excess) != excess:
            return False
        self.length = length
        return True

    def clear(self) -> None:
        """Forget everything."""
        self._cache = caches.make_prompt_cache(self.model.net)
        self.length = 0

    def close(self) -> None:
        self._cache = []
        self._logits = self._likeliest = self._rows = None

    def _run(self, tokens: Sequence[int]) -> Any:
        logits = self.model.net(mx.array([tokens]), cache=self._cache)
        self.length += len(tokens)
        return logits


def _read_weights(net: Any, progress: Callable[[float], None]) -> None:
    """Bring the weights into memory one by one; `load` has only mapped them."""
    weights = [array for _, array in tree_flatten(net.parameters())]
    total = sum(array.nbytes for array in weights) or 1
    done = 0
    for array in weights:
        mx.eval(array)
        done += array.nbytes
        progress(done / total)


def _is_whole(entry: Any, length: int) -> bool:
    """Whether a layer's cache of `length` tokens still holds them all, so that the last of them can be taken back.

    A sliding window forgets its oldest entries for good; what is taken back then would be missing from the window.
    """
    if isinstance(entry, caches.CacheList):
        return all(_is_whole(inner, length) for inner in entry.caches)
    if isinstance(entry, caches.RotatingKVCache):
        return bool(length < entry.max_size)
    if isinstance(entry, caches.ChunkedKVCache):
        return bool(length < entry.chunk_size)
    return bool(entry.is_trimmable())


def _read_config(path: str) -> Mapping[str, Any]:
    """config.json as it is: mlx-lm replaces its end tokens by those of generation_config.json."""
    config = json.loads(Path(path, "config.json").read_text(encoding="utf-8"))
    return config if isinstance(config, dict) else {}


def _end_ids(config: Mapping[str, Any]) -> set[int]:
    found: set[int] = set()
    for part in (config, config.get("text_config") or {}):
        ids = part.get("eos_token_id")
        found.update(i for i in (ids if isinstance(ids, list) else [ids]) if type(i) is int)
    return found


def _context_length(config: Mapping[str, Any]) -> int | None:
    for part in (config, config.get("text_config") or {}):
        length = part.get("max_position_embeddings")
        if type(length) is int and length > 0:
            return length
    return None
