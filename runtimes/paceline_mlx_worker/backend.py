"""What MLX loads: models that generate, their drafts, and models that make embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paceline_mlx_worker import adapters, binding
from paceline_mlx_worker.context import Context
from paceline_mlx_worker.embedding import Embedder
from paceline_mlx_worker.memory import memory_of
from paceline_mlx_worker.sampler import Samplers
from paceline_worker import grammar
from paceline_worker.adapters import read_adapters
from paceline_worker.backend import LoadRequest
from paceline_worker.lanes import Lanes
from paceline_worker.options import Options, invalid
from paceline_worker.pair import DEFAULT_EMBEDDING_CONTEXT, PairBackend, loaded_result, sizes
from paceline_worker.prompt_cache import OPTION, PromptCache, read_limit
from paceline_worker.protocol import Fault
from paceline_worker.request import MAX_DRAFT
from paceline_worker.stepping import Stepper

_Stepper = Stepper[Context, binding.Model]

_CACHE_BITS = {"q8_0": 8, "q4_0": 4}
_CACHE_OPTIONS = ("cache_type_k", "cache_type_v")


class MlxBackend(PairBackend[Context, binding.Model]):
    engine = "mlx"
    version = binding.VERSION
    features = (
        *("generate", "draft", "lookup", "embed", "overflow", "tokenize", "logprobs", "lora_folder"),
        *grammar.FEATURES,
    )
    load_options = (*_CACHE_OPTIONS, "parallel", OPTION, "embedding", "lora")

    def __init__(self) -> None:
        super().__init__()
        binding.start()

    def devices(self) -> list[dict[str, Any]]:
        return binding.devices()

    def load_main(self, request: LoadRequest, progress: Callable[[float], None]) -> dict[str, Any]:
        options = Options(request.options, self.load_options, "mlx")
        bits, parallel = _cache_bits(options), options.whole("parallel", least=1, most=64)
        cache = PromptCache(read_limit(options))
        adapter = adapters.only(read_adapters(options))
        embedding = options.flag("embedding") or False
        self.unload("main")
        model = binding.Model(request.path, adapter=adapter, headless=embedding, progress=progress)
        try:
            if embedding:
                trained = model.n_ctx_train or DEFAULT_EMBEDDING_CONTEXT
                context_length = request.context_length or min(trained, DEFAULT_EMBEDDING_CONTEXT)
                self._embedder = Embedder(model, request.path, context_length)
                self.slots = 1
                return loaded_result(model, context_length, self.slots, _taken(model))
            memory = memory_of(model.net, bits)
            context_length, slots = sizes(request, model.n_ctx_train, parallel)
            slots = min(slots, memory.count or slots)
            main = Lanes(Context(model, memory), model, slots, slots * (1 + MAX_DRAFT), cache)
            self._pair = Stepper(main, Samplers(model, context_length), context_length=context_length)
        except BaseException:
            model.close()
            raise
        self.slots = slots
        return loaded_result(model, context_length, slots, _taken(model))

    def load_draft(self, pair: _Stepper, request: LoadRequest, progress: Callable[[float], None]) -> dict[str, Any]:
        options = Options(request.options, _CACHE_OPTIONS, "an mlx draft")
        bits = _cache_bits(options)
        self.unload("draft")
        model = binding.Model(request.path, progress=progress)
        try:
            memory = memory_of(model.net, bits)
            if memory.count is not None and memory.count < self.slots:
                raise Fault("unsupported", "this draft's layers keep the state of one sequence only")
            lanes = Lanes(Context(model, memory), model, self.slots, self.slots, pair.main.cache)
        except BaseException:
            model.close()
            raise
        pair.add_draft(lanes)
        return loaded_result(model, pair.context_length, self.slots, _taken(model))


def _taken(model: binding.Model) -> dict[str, int]:
    """What a load took in bytes: MLX's caches and buffers grow later, with what they hold."""
    return {"weights_bytes": model.weights_bytes}


def _cache_bits(options: Options) -> int | None:
    """How keys and values are quantized; None when they are not."""
    keys, values = (options.one_of(name, tuple(_CACHE_BITS)) for name in _CACHE_OPTIONS)
    if keys != values:
        raise invalid("cache_type_v", f"mlx quantizes keys and values alike, not keys {keys} and values {values}")
    return None if keys is None else _CACHE_BITS[keys]
