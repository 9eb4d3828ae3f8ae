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
