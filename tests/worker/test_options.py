"""Load options are read field by field; what makes no sense is refused by name."""

import pytest

from paceline_llama_cpp_worker.options import LoadOptions, Placement, read_options
from paceline_worker.options import Options
from paceline_worker.protocol import Fault

KNOWN = ("flag", "whole", "choice", "shares", "objects")


def test_absent_and_null_options_are_none():
    for given in ({}, dict.fromkeys(KNOWN)):
        options = Options(given, KNOWN, "the engine")
        assert options.flag("flag") is None
        assert options.whole("whole", least=1) is None
        assert options.one_of("choice", ["a"]) is None
        assert options.shares("shares") is None
        assert options.objects("objects") == ()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"unknown": None}, "unknown"),
        ({"flag": 1}, "flag"),
        ({"whole": True}, "whole"),
        ({"whole": 0}, "whole"),
        ({"whole": 2**31}, "whole"),
        ({"whole": 1.0}, "whole"),
        ({"choice": ["a"]}, "choice"),
        ({"choice": "b"}, "choice"),
        ({"shares": []}, "shares"),
        ({"shares": [0, 0]}, "shares"),
        ({"shares": [1, -1]}, "shares"),
        ({"shares": [float("inf")]}, "shares"),
        ({"shares": 1}, "shares"),
        ({"objects": {}}, "objects"),
        ({"objects": [1]}, "objects"),
    ],
)
def test_what_makes_no_sense_is_named(given, name):
    def read():
        options = Options(given, KNOWN, "the engine")
        options.flag("flag")
        options.whole("whole", least=1)
        options.one_of("choice", ["a"])
        options.shares("shares")
        options.objects("objects")

    with pytest.raises(Fault) as error:
        read()
    assert error.value.data == {"kind": "invalid_request", "param": f"options.{name}"}


def test_without_options_all_is_left_to_llama_cpp():
    options = read_options({}, "main", [])
    assert options == LoadOptions(Placement(), options.context)
    assert (options.context.type_k, options.context.type_v, options.context.flash_attention) == (None, None, None)


def test_a_main_model_is_divided_and_a_draft_goes_to_one_gpu():
    gpus = ["CUDA0", "CUDA1"]
    main = read_options({"tensor_split": [3, 1], "gpu_layers": 20}, "main", gpus).placement
    assert (main.tensor_split, main.main_gpu, main.gpu_layers) == ((3.0, 1.0), None, 20)
    assert read_options({}, "draft", gpus).placement == Placement(gpu_layers=-1, main_gpu=0)
    assert read_options({"main_gpu": 1}, "draft", gpus).placement.main_gpu == 1
    assert read_options({}, "draft", []).placement.main_gpu is None
    for name, value in {"gpu_layers": 3, "tensor_split": [1], "offload_kv_cache": False}.items():
        read_options({name: value}, "main", gpus)
        with pytest.raises(Fault) as error:
            read_options({name: value}, "draft", gpus)
        assert error.value.data["param"] == f"options.{name}"


@pytest.mark.parametrize(
    ("options", "name", "seen"),
    [
        ({"main_gpu": 2}, "main_gpu", "sees 2: CUDA0, CUDA1"),
        ({"tensor_split": [1, 1, 1]}, "tensor_split", "sees 2"),
        ({"tensor_split": [1, 1], "main_gpu": 0}, "tensor_split", "left out"),
    ],
)
def test_only_gpus_that_are_there_can_be_used(options, name, seen):
    with pytest.raises(Fault, match=seen) as error:
        read_options(options, "main", ["CUDA0", "CUDA1"])
    assert error.value.data["param"] == f"options.{name}"


@pytest.mark.parametrize(
    ("options", "mode"),  # llama.h, enum llama_load_mode
    [({}, -1), ({"mmap": False}, 0), ({"mmap": True}, 1), ({"mmap": False, "mlock": True}, 2), ({"mlock": True}, 3)],
)
def test_mapping_and_locking_are_one_setting_of_llama_cpp(options, mode):
    assert read_options(options, "main", []).placement.load_mode == mode


def test_how_much_is_kept_beyond_the_slots_can_be_said():
    assert read_options({"prompt_cache_bytes": 2**40}, "main", []).prompt_cache == 2**40
    assert read_options({"prompt_cache_bytes": 0}, "main", []).prompt_cache == 0
    for value in (-1, 1.5, "1G", True):
        with pytest.raises(Fault, match="prompt_cache_bytes"):
            read_options({"prompt_cache_bytes": value}, "main", [])
