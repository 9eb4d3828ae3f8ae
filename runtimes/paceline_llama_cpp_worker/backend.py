"""What llama.cpp loads: models that generate, their drafts, and models that make embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paceline_llama_cpp_worker import binding
from paceline_llama_cpp_worker.embedding import Embedder
from paceline_llama_cpp_worker.options import MAIN_OPTIONS, LoadOptions, read_options
from paceline_llama_cpp_worker.reading import Reader
from paceline_llama_cpp_worker.sampler import Samplers
from paceline_worker import grammar
from paceline_worker.backend import LoadRequest
from paceline_worker.lanes import Lanes
from paceline_worker.pair import DEFAULT_EMBEDDING_CONTEXT, PairBackend, loaded_result, sizes
from paceline_worker.prompt_cache import PromptCache
from paceline_worker.protocol import Fault
from paceline_worker.request import MAX_DRAFT
from paceline_worker.stepping import CHUNK, Stepper

_Lanes = Lanes[binding.Context, binding.Model]
_Stepper = Stepper[binding.Context, binding.Model]

_DRAFT_PER_SLOT = 16


class LlamaBackend(PairBackend[binding.Context, binding.Model]):
    engine = "llama.cpp"
    version = binding.VERSION
    features = (
        *("generate", "draft", "lookup", "embed", "tokenize", "lora", "overflow", "logprobs"),
        *grammar.FEATURES,
    )
    load_options = MAIN_OPTIONS

    def __init__(self) -> None:
        super().__init__()
        binding.start()

    def devices(self) -> list[dict[str, Any]]:
        return binding.devices()

    def load_main(self, request: LoadRequest, progress: Callable[[float], None]) -> dict[str, Any]:
        options = read_options(request.options, "main", binding.gpus())
        self.unload("main")
        model = _model(request, options, progress)
        try:
            if options.embedding or not model.is_generative:
                context_length = request.context_length or min(model.n_ctx_train, DEFAULT_EMBEDDING_CONTEXT)
                self.slots = 1
                embedder = Embedder(model, n_ctx=context_length, threads=request.threads, options=options.context)
                self._embedder = embedder
                return loaded_result(model, context_length, self.slots, embedder.memory)
            context_length, slots = sizes(request, model.n_ctx_train, options.parallel)
            outputs = max(1 + MAX_DRAFT, slots * (1 + _DRAFT_PER_SLOT))
            cache = PromptCache(options.prompt_cache)
            main = _lanes(model, request, options, cache, context_length=context_length, slots=slots, outputs=outputs)
            batch = options.batch or CHUNK
            reader = Reader(main.context, model, options=options.context, batch=batch, threads=request.threads)
            self._pair = Stepper(
                main, Samplers(model, context_length), context_length=context_length, chunk=batch, reader=reader
            )
        except BaseException:
            model.close()
            raise
        self.slots = slots
        return loaded_result(model, context_length, slots, main.context.memory)

    def load_draft(self, pair: _Stepper, request: LoadRequest, progress: Callable[[float], None]) -> dict[str, Any]:
        options = read_options(request.options, "draft", binding.gpus())
        self.unload("draft")
        model = _model(request, options, progress)
        try:
            if not model.is_generative:
                raise Fault("load_failed", f"{request.path} is no model that generates text token by token")
            context_length, slots = pair.context_length, self.slots
            cache = pair.main.cache
            lanes = _lanes(model, request, options, cache, context_length=context_length, slots=slots, outputs=slots)
        except BaseException:
            model.close()
            raise
        pair.add_draft(lanes)
        return loaded_result(model, context_length, slots, lanes.context.memory)


def _model(request: LoadRequest, options: LoadOptions, progress: Callable[[float], None]) -> binding.Model:
    return binding.Model(request.path, placement=options.placement, adapters=options.adapters, progress=progress)


def _lanes(
    model: binding.Model,
    request: LoadRequest,
    options: LoadOptions,
    cache: PromptCache,
    *,
    context_length: int,
    slots: int,
    outputs: int,
) -> _Lanes:
    context = binding.Context(
        model,
        n_ctx=context_length * slots,
        n_seq=slots,
        n_batch=max(options.batch or CHUNK, outputs),
        n_outputs=outputs,
        threads=request.threads,
        options=options.context,
    )
    return Lanes(context, model, slots, outputs, cache)
