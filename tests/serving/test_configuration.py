"""What of a load configuration a model and its engine can have."""

import pytest

from paceline import LoadConfig, Model, ModelFacts, ModelKind
from paceline.errors import RequestError
from paceline.loading import LoraAdapter
from paceline.serving.client import WorkerInfo
from paceline.serving.configuration import check_options


@pytest.mark.parametrize(("feature", "fits", "other"), [("lora", "file", "folder"), ("lora_folder", "folder", "file")])
def test_an_adapter_is_a_file_or_a_folder_as_the_engine_says(tmp_path, feature, fits, other):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    info = WorkerInfo(1, "tried", "1.0", ("generate", feature), (), 1, ("lora",))
    model = Model("m", "tried", tmp_path, "test", ModelFacts(ModelKind.LLM, 0))
    check_options(info, model, LoadConfig(lora=(LoraAdapter(tmp_path / fits),)))
    with pytest.raises(RequestError, match=f"is a {other}; for tried an adapter is a {fits}") as caught:
        check_options(info, model, LoadConfig(lora=(LoraAdapter(tmp_path / other),)))
    assert caught.value.param == "lora"


def test_a_draft_lies_on_one_gpu_whole_whatever_the_main_model_does():
    divided = LoadConfig(gpu_layers=3, tensor_split=(1.0, 1.0), offload_kv_cache=False)
    assert divided.draft_options() == {}
    shared = {"main_gpu": 1, "flash_attention": False, "mmap": False}
    assert LoadConfig(**shared, parallel=4, queue=9, cache_type_k="q8_0", context_length=99).draft_options() == shared


def test_one_gpu_and_shares_of_all_displace_each_other_s_default():
    split, one = LoadConfig(tensor_split=(3.0, 1.0), threads=2), LoadConfig(main_gpu=1)
    assert one.over(split) == LoadConfig(main_gpu=1, threads=2)
    assert split.over(one) == split
    assert LoadConfig(threads=3).over(split) == LoadConfig(tensor_split=(3.0, 1.0), threads=3)
