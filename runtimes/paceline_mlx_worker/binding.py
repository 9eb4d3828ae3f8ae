"""Models and tokenizers of mlx-lm. Nothing here decides anything.

Uses mlx-lm 0.32.2's `utils` and `models.cache`. Only local folders are read, and no code that a folder brings is
run: mlx-lm's own model classes are all there is.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import cache as caches
from mlx_lm.utils import _get_classes, load_model, load_tokenizer, maybe_set_recommended_wired_limit
from transformers import PreTrainedTokenizerFast

from paceline_mlx_worker import adapters, longest
from paceline_mlx_worker.spelling import speller
from paceline_worker.adapters import Adapter
from paceline_worker.pieces import Pieces
from paceline_worker.protocol import Fault

VERSION: str = version("mlx-lm")


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


class Model(Pieces):
    """A loaded MLX folder and its tokenizer."""

    def __init__(
        self,
        path: str,
        *,
        adapter: Adapter | None = None,
        headless: bool = False,
        progress: Callable[[float], None],
    ) -> None:
        """`headless`: its last states are wanted, so the folder need not have what makes logits of them."""
        super().__init__()
        if not Path(path, "config.json").is_file():
            raise Fault("load_failed", f"{path} is no folder with a config.json", path=path)
        try:
            self.net, config = load_model(
                Path(path),
                lazy=True,
                model_config={"tie_word_embeddings": True} if headless else None,
                get_model_classes=_headless_classes if headless else _get_classes,
            )
            ends = config.get("eos_token_id")
            wrapper = load_tokenizer(Path(path), {"trust_remote_code": False}, eos_token_ids=ends)
            if adapter is not None:
                adapters.add(self.net, adapter)
            _read_weights(self.net, progress)
            logits = self.net(mx.array([[0]]), cache=caches.make_prompt_cache(self.net))
            mx.eval(logits)
            self.n_vocab: int = logits.shape[2]
            self._tokenizer = wrapper._tokenizer
            backend = self._tokenizer.backend_tokenizer
            self._speller = speller(_state(backend.decoder))
            # From now on encoding finds transformers' settings made, and only reads: other threads may do it, too.
            self._tokenizer.encode("")
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
        self.weights_bytes = sum(array.nbytes for _, array in tree_flatten(self.net.parameters()))
        bos = self._tokenizer.bos_token_id
        self.bos: int | None = bos if isinstance(bos, int) else None

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids; special tokens written out in `text` become their ids."""
        text = text.encode("utf-8", errors="replace").decode()
        if type(self._tokenizer)._encode_plus is not PreTrainedTokenizerFast._encode_plus:
            return list(self._tokenizer.encode(text, add_special_tokens=add_special))
        # The same without all that is not asked for, which costs as much again and is made under Python's lock.
        (encoded,) = self._tokenizer.backend_tokenizer.encode_batch_fast([text], add_special_tokens=add_special)
        return list(encoded.ids)

    @cached_property
    def token_bytes(self) -> int | None:
        """The most bytes of a text that one token can stand for; None where that is not certain."""
        backend = self._tokenizer.backend_tokenizer
        added = backend.get_added_tokens_decoder().values()
        if type(backend.model).__name__ != "BPE" or any(token.lstrip or token.rstrip for token in added):
            return None
        return longest.token_bytes(
            _state(backend.normalizer),
            _state(backend.pre_tokenizer),
            backend.get_vocab(with_added_tokens=True),
            byte_fallback=backend.model.byte_fallback,
        )

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


def _headless_classes(config: dict[str, Any]) -> tuple[type[Any], type[Any]]:
    """mlx-lm's classes, for weights as sentence-transformers save them: those of the inner model, without its name."""
    model_class, arguments_class = _get_classes(config)

    class Headless(model_class):  # type: ignore[valid-type,misc]
        def sanitize(self, weights: dict[str, Any]) -> dict[str, Any]:
            bare = any(name.startswith("layers.") for name in weights)
            weights = {
                f"model.{name}" if bare else name: array
                for name, array in weights.items()
                if not name.startswith("lm_head.")
            }
            return super().sanitize(weights) if hasattr(super(), "sanitize") else weights

    return Headless, arguments_class


def _state(part: Any) -> dict[str, Any] | None:
    """A part of a tokenizer as tokenizer.json describes it."""
    return json.loads(part.__getstate__()) if part else None


def _read_weights(net: Any, progress: Callable[[float], None]) -> None:
    """Bring the weights into memory one by one; `load` has only mapped them."""
    weights = [array for _, array in tree_flatten(net.parameters())]
    total = sum(array.nbytes for array in weights) or 1
    done = 0
    for array in weights:
        mx.eval(array)
        done += array.nbytes
        progress(done / total)


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
