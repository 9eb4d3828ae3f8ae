"""What fits is told with numbers and ways out; what is unknown is never refused."""

from dataclasses import replace

import pytest

from paceline.errors import DoesNotFitError
from paceline.loading import LoadConfig, MemoryEstimate
from paceline.serving.client import Device
from paceline.serving.fit import Room, check_fits, room_now
from paceline.types import Model, ModelFacts, ModelKind

GIB = 1 << 30


@pytest.fixture
def model(tmp_path):
    return Model("big", "gguf", tmp_path / "big.gguf", "tester", ModelFacts(ModelKind.LLM, 8 * GIB))


def estimate_of(config, *, gpu=False):
    """8 GiB of weights, 1 GiB of cache for each thousand tokens of a request, 1 GiB to compute in."""
    context, parallel = config.context_length or 4000, config.parallel or 4
    cache = context * parallel * GIB // 1000 // (2 if config.cache_type_k else 1)
    on_gpu = 8 * GIB if gpu and config.gpu_layers != 0 else 0
    return MemoryEstimate(8 * GIB, cache, GIB, on_gpu, context, parallel)


def refusal(model, room, config=None, of=estimate_of, others=()):
    with pytest.raises(DoesNotFitError) as caught:
        check_fits(model, config or LoadConfig(), room, of, others=others)
    return caught.value


@pytest.mark.parametrize("room", [Room(None), Room(25 * GIB), Room(25 * GIB, (0,)), Room(None, (0, 0))])
def test_what_fits_or_is_unknown_is_not_refused(model, room):
    check_fits(model, LoadConfig(), room, estimate_of)


def test_an_engine_that_cannot_tell_is_not_refused(model):
    check_fits(model, LoadConfig(), Room(0, (0,)), lambda config: None)


def test_unknown_parts_count_as_nothing(model):
    unknown = MemoryEstimate(8 * GIB, None, None)
    check_fits(model, LoadConfig(), Room(8 * GIB), lambda config: unknown)
    error = refusal(model, Room(8 * GIB - 1), of=lambda config: unknown)
    assert "8.0 GiB (weights 8.0 GiB)" in error.message


def test_the_numbers_and_the_least_painful_ways_out(model):
    error = refusal(model, Room(19 * GIB), others=[("small", GIB), ("other", 7 * GIB)])
    assert error.message == (
        "big does not fit: it would take 25.0 GiB (weights 8.0 GiB, cache 16.0 GiB for 4 requests of 4000 tokens, "
        "compute 1.0 GiB), and 19.0 GiB of memory is available"
    )
    assert error.help == (
        "parallel 1 fits; cache_type_k and cache_type_v q8_0 fit; context_length 2000 fits; unloading other gives "
        "7.0 GiB back, which is enough; a smaller model or a stronger quantization would need less"
    )


def test_ways_that_lead_nowhere_are_not_told(model):
    error = refusal(model, Room(6 * GIB), LoadConfig(flash_attention=False), others=[("small", GIB)])
    assert error.help == "a smaller model or a stronger quantization would need less"


def test_a_gpu_that_is_too_small(model):
    def on_gpu(config):
        return estimate_of(config, gpu=True)

    error = refusal(model, Room(64 * GIB, (3 * GIB, 3 * GIB)), of=on_gpu)
    assert "6.0 GiB on GPUs are available for the 8.0 GiB that go there" in error.message
    assert "gpu_layers 0 fits the machine's memory" in error.help
    check_fits(model, LoadConfig(gpu_layers=0), Room(64 * GIB, (3 * GIB, 3 * GIB)), on_gpu)
    check_fits(model, LoadConfig(), Room(64 * GIB, (3 * GIB, 5 * GIB)), on_gpu)


@pytest.mark.parametrize("named", [{"main_gpu": 1}, {"tensor_split": (0.0, 1.0)}])
def test_one_gpu_that_is_too_small_for_what_must_go_there(model, named):
    def there(config):
        placed = (0, 8 * GIB) if config.main_gpu or config.tensor_split else ()
        return replace(estimate_of(config, gpu=True), gpus=placed)

    config = LoadConfig(**named)
    check_fits(model, config, Room(64 * GIB, (2 * GIB, 8 * GIB)), there)
    error = refusal(model, Room(64 * GIB, (8 * GIB, 2 * GIB)), config, of=there)
    assert error.message.endswith("2.0 GiB on GPU 1 is available for the 8.0 GiB that go there")
    assert f"it fits without {next(iter(named))}" in error.help
    assert "it fits without" not in refusal(model, Room(64 * GIB, (4 * GIB, 2 * GIB)), config, of=there).help
    check_fits(model, config, Room(64 * GIB, (9 * GIB,)), there)  # there is no such GPU, as the engine will say


def test_a_draft_and_its_main_model_share_what_there_is():
    main, draft = MemoryEstimate(9, 0, 0, 9), MemoryEstimate(3, 0, 0, 3, gpus=(3,))
    assert Room(None, (3, 9)).holds(main, draft)
    assert not Room(None, (2, 10)).holds(main, draft)
    assert not Room(None, (3, 8)).holds(main, draft)
    assert not Room(None, (5, 9)).holds(draft, replace(draft, gpus=(3, 0)))


def test_an_unloaded_model_can_have_lain_anywhere():
    assert Room(5, (1, 2)).freed(3) == Room(8, (4, 5))
    assert Room(None).freed(3) == Room(None)


def test_the_room_is_what_the_machine_leaves_and_what_is_free_on_gpus(monkeypatch):
    assert 0 < room_now().host < 1 << 50
    monkeypatch.setenv("PACELINE_OVERRIDE_MEMORY_AVAILABLE", "3GiB")
    cpu, gpu = Device("CPU", "cpu", GIB, None, GIB), Device("CUDA0", "gpu", 24 * GIB, None, 20 * GIB)
    assert room_now([cpu, gpu, gpu]) == Room(3 * GIB, (20 * GIB, 20 * GIB))
    assert room_now([cpu]) == Room(3 * GIB, None)
    assert room_now([gpu, Device("CUDA1", "gpu", 24 * GIB)]).gpus is None
    monkeypatch.setenv("PACELINE_OVERRIDE_MEMORY_AVAILABLE", "unknown")
    assert room_now().host is None
