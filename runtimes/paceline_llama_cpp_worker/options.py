"""The options of a load, as llama.cpp takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paceline_worker.adapters import Adapter, read_adapters
from paceline_worker.options import Options, invalid
from paceline_worker.prompt_cache import DEFAULT_LIMIT, OPTION, read_limit

CACHE_TYPES = {
    "f32": 0,
    "f16": 1,
    "bf16": 30,
    "q8_0": 8,
    "q5_1": 7,
    "q5_0": 6,
    "q4_1": 3,
    "q4_0": 2,
    "iq4_nl": 20,
}
"""Name -> ggml type: what llama.cpp's own programs cache keys and values in."""

_FLOATS = ("f32", "f16", "bf16")
_DIVIDING = ("gpu_layers", "tensor_split", "offload_kv_cache")
_DRAFT_OPTIONS = ("main_gpu", "mmap", "mlock", "flash_attention", "cache_type_k", "cache_type_v")
MAIN_OPTIONS = (*_DIVIDING, *_DRAFT_OPTIONS, "eval_batch_size", "parallel", OPTION, "embedding", "lora")

_LOAD_MODES = {(False, False): 0, (True, False): 1, (False, True): 2, (True, True): 3}
"""(map the file, lock it in memory) -> `llama_load_mode`."""
_LOAD_MODE_AUTO = -1


@dataclass(frozen=True)
class Placement:
    """Where a model's weights go."""

    gpu_layers: int = -1
    """-1: all."""
    main_gpu: int | None = None
    """The one GPU that takes the whole model; None divides it among all."""
    tensor_split: tuple[float, ...] | None = None
    """Each GPU's share; None: in proportion to their free memory."""
    load_mode: int = _LOAD_MODE_AUTO


@dataclass(frozen=True)
class ContextOptions:
    """How a context computes. None leaves it to what is best here."""

    flash_attention: bool | None = None
    offload_kv_cache: bool = True
    type_k: int | None = None
    type_v: int | None = None


@dataclass(frozen=True)
class LoadOptions:
    placement: Placement
    context: ContextOptions
    adapters: tuple[Adapter, ...] = ()
    batch: int | None = None
    """Tokens computed in one step."""
    parallel: int | None = None
    prompt_cache: int = DEFAULT_LIMIT
    """Bytes of states that are kept beyond the slots."""
    embedding: bool = False


def read_options(given: Mapping[str, Any], role: str, gpus: Sequence[str]) -> LoadOptions:
    """Check the options of a `main` or `draft` load; `gpus` names the GPUs the engine sees."""
    known = MAIN_OPTIONS if role == "main" else _DRAFT_OPTIONS
    options = Options(given, known, "llama.cpp" if role == "main" else "a llama.cpp draft")
    return LoadOptions(
        placement=_placement(options, role, gpus),
        context=_context(options),
        adapters=read_adapters(options),
        batch=options.whole("eval_batch_size", least=1, most=16384),
        parallel=options.whole("parallel", least=1, most=64),
        prompt_cache=read_limit(options),
        embedding=options.flag("embedding") or False,
    )


def _placement(options: Options, role: str, gpus: Sequence[str]) -> Placement:
    gpu_layers = options.whole("gpu_layers", least=-1)
    main_gpu = options.whole("main_gpu", least=0)
    split = options.shares("tensor_split")
    seen = f"llama.cpp sees {len(gpus)}: {', '.join(gpus)}" if gpus else "llama.cpp sees none"
    if main_gpu is not None and main_gpu >= len(gpus):
        raise invalid("main_gpu", f"there is no GPU {main_gpu} (counted from 0); {seen}")
    if split is not None and len(split) > len(gpus):
        raise invalid("tensor_split", f"tensor_split names {len(split)} GPUs; {seen}")
    if split is not None and main_gpu is not None:
        raise invalid("tensor_split", "main_gpu puts the model on one GPU, so tensor_split must be left out")
    if role == "draft" and gpus:
        # A draft is small and runs token by token: one GPU, the whole of it, is always best.
        main_gpu = main_gpu or 0
    lock, mapped = options.flag("mlock") or False, options.flag("mmap")
    mode = _LOAD_MODE_AUTO if mapped is None and not lock else _LOAD_MODES[mapped is not False, lock]
    return Placement(-1 if gpu_layers is None else gpu_layers, main_gpu, split, mode)


def _context(options: Options) -> ContextOptions:
    names = tuple(CACHE_TYPES)
    type_k, type_v = options.one_of("cache_type_k", names), options.one_of("cache_type_v", names)
    flash_attention = options.flag("flash_attention")
    if type_v is not None and type_v not in _FLOATS and flash_attention is False:
        raise invalid("cache_type_v", f"values can be cached as {type_v} only with flash attention; it is switched off")
    return ContextOptions(
        flash_attention=flash_attention,
        offload_kv_cache=options.flag("offload_kv_cache") is not False,
        type_k=None if type_k is None else CACHE_TYPES[type_k],
        type_v=None if type_v is None else CACHE_TYPES[type_v],
    )
