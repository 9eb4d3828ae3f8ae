import json
import subprocess
import sys
import textwrap

import pytest

from paceline.survey import take_survey
from paceline.survey.facts import Gpu
from paceline.survey.nvidia import parse_library, parse_smi, survey_nvidia

FIELDS = ("driver_version", "compute_cap", "memory.total", "name")
TWO_CARDS = "echo '550.54.14, 8.9, 24564, NVIDIA GeForce RTX 4090'; echo '550.54.14, 5.2, 12288, GTX TITAN X, black'"


def test_good_answer(fake_smi, fake_driver, environ, tmp_path):
    program = fake_smi(f'echo "$*" > {tmp_path}/argv; echo "[$CUDA_VISIBLE_DEVICES]" >> {tmp_path}/argv; {TWO_CARDS}')
    environ["CUDA_VISIBLE_DEVICES"] = "1"
    found = survey_nvidia(environ, 30)
    assert found.gpus.value == (
        Gpu("nvidia", "NVIDIA GeForce RTX 4090", 24564 << 20, "8.9"),
        Gpu("nvidia", "GTX TITAN X, black", 12288 << 20, "5.2"),
    )
    assert found.gpus.source == str(program)
    assert (found.driver.value, found.driver.source) == ("550.54.14", str(program))
    assert (found.cuda_version.value, found.cuda_version.source) == ("12.4", "cuDriverGetVersion")
    assert (tmp_path / "argv").read_text().splitlines() == [
        "--query-gpu=driver_version,compute_cap,memory.total,name --format=csv,noheader,nounits",
        "[]",
    ]


def test_what_the_driver_does_not_know_is_none(fake_smi, environ, tmp_path):
    fake_smi("echo '580.95.05, 12.1, [N/A], NVIDIA GB10'")
    assert survey_nvidia(environ, 30).gpus.value == (Gpu("nvidia", "NVIDIA GB10", None, "12.1"),)


def test_an_old_driver_without_compute_cap_is_completed_by_the_library(fake_smi, fake_driver, environ):
    fake_smi(
        "case $1 in *compute_cap*) echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2;; esac\n"
        "echo '470.82.01, 1024, Card A'; echo '470.82.01, 2048, Card B'"
    )
    environ["CUDA_VISIBLE_DEVICES"] = "0"
    found = survey_nvidia(environ, 30)
    assert [(gpu.name, gpu.compute_capability) for gpu in found.gpus.value] == [("Card A", "8.6"), ("Card B", "9.6")]
    assert found.driver.value == "470.82.01"
    assert found.gpus.source.endswith("nvidia-smi, libcuda")


def test_no_devices_is_an_answer(fake_smi, environ):
    fake_smi("echo 'No devices were found'; exit 6")
    found = survey_nvidia(environ, 30)
    assert found.gpus.value == ()
    assert found.asked


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("echo 'hello world'", "wrote what is no table of GPUs: 'hello world'"),
        ("echo 'a, b, c, d'", "where a number belongs"),
        ("echo '550.54, 8.9, -5, Card'", "wrote '-5' where a number belongs"),
        ("exit 0", "wrote nothing"),
        ("printf '\\377\\376\\000'", "wrote what is no table of GPUs"),
        ("echo 'NVIDIA-SMI has failed: no driver'; exit 9", "ended with status 9: NVIDIA-SMI has failed: no driver"),
        ("sleep 300", "gave no answer within 0.5 s"),
    ],
)
def test_a_broken_nvidia_smi_leaves_the_gpus_unknown_and_says_why(fake_smi, fake_driver, environ, body, why):
    fake_smi(body)
    environ["FAKE_CUDA"] = "999"
    found = survey_nvidia(environ, 0.5 if "sleep" in body else 30)
    assert found.gpus.value is None
    assert why in found.gpus.source
    assert "libcuda: " in found.gpus.source


def test_without_nvidia_smi_the_library_is_asked(without_smi, fake_driver, environ, root):
    environ["CUDA_VISIBLE_DEVICES"] = ""
    found = survey_nvidia(environ, 30, root)
    assert found.gpus.value == (
        Gpu("nvidia", "Fake GPU 0", 1 << 30, "8.6"),
        Gpu("nvidia", "Fake GPU 1", 2 << 30, "9.6"),
    )
    assert (found.driver.value, found.driver.source) == ("550.54.14", "libnvidia-ml")
    assert found.cuda_version.value == "12.4"


@pytest.mark.parametrize(
    ("mode", "timeout_s", "gpus", "why"),
    [
        ("100", 30, (), "libcuda"),
        ("803", 30, None, "libcuda: CUDA error 803"),
        ("crash", 30, None, "libcuda: ended with status -6"),
        ("hang", 1.0, None, "libcuda: gave no answer within 1 s"),
    ],
)
def test_a_broken_driver_library(without_smi, fake_driver, environ, root, mode, timeout_s, gpus, why):
    environ["FAKE_CUDA"] = mode
    found = survey_nvidia(environ, timeout_s, root)
    assert found.gpus.value == gpus
    assert why in found.gpus.source


def test_the_kernel_module_knows_the_driver_when_nothing_else_does(without_smi, environ, root):
    (root / "proc/driver/nvidia").mkdir(parents=True)
    (root / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"
        "GCC version: gcc 12.2.0\n"
    )
    environ["LD_LIBRARY_PATH"] = str(root)
    found = survey_nvidia(environ, 0.001, root)
    assert (found.driver.value, found.driver.source) == ("535.104.05", "/proc/driver/nvidia/version")


def test_without_a_sign_nothing_is_started(without_smi, environ, tmp_path):
    found = survey_nvidia(environ, 30, tmp_path / "nothing")
    assert not found.asked
    assert (found.gpus.value, found.driver.value, found.cuda_version.value) == ((), None, None)
    assert "/dev/nvidiactl" in found.gpus.source


def test_take_survey_loads_no_driver_and_no_engine(fake_smi, fake_driver, environ):
    """A fresh interpreter takes the survey with a driver to be found, then says what is loaded into it."""
    fake_smi(TWO_CARDS)
    program = """
        import json, os, sys
        from paceline.survey import take_survey
        survey = take_survey()
        maps = open("/proc/self/maps").read()
        print(json.dumps({
            "cuda": survey.cuda_version.value,
            "gpus": [gpu.name for gpu in survey.gpus.value],
            "drivers": [n for n in ("libcuda", "libnvidia", "libcudart", "libnvml") if n in maps],
            "engines": sorted({m.partition(".")[0] for m in sys.modules}
                              & {"llama_cpp", "mlx", "mlx_lm", "torch", "numpy", "pynvml",
                                 "paceline_llama_cpp", "paceline_mlx", "paceline_worker"}),
        }))
    """
    argv = [sys.executable, "-c", textwrap.dedent(program)]
    answer = json.loads(subprocess.run(argv, env=environ, text=True, capture_output=True, check=True).stdout)
    assert answer["cuda"] == "12.4"
    assert answer["gpus"][0] == "NVIDIA GeForce RTX 4090"
    assert answer["drivers"] == []
    assert answer["engines"] == []


def test_the_three_facts_share_one_question_and_overridden_ones_ask_none(fake_smi, environ, tmp_path):
    calls = tmp_path / "calls"
    fake_smi(f"echo call >> {calls}; {TWO_CARDS}")
    take_survey(environ)
    assert calls.read_text().splitlines() == ["call"]
    overridden = {"GPUS": "", "NVIDIA_DRIVER": "1.2", "CUDA_VERSION": ""}
    take_survey({**environ, **{f"PACELINE_OVERRIDE_{k}": v for k, v in overridden.items()}})
    assert calls.read_text().splitlines() == ["call"]


def test_parse_smi_reads_windows_line_ends_and_blank_lines():
    gpus, driver = parse_smi("\r\n551.23, 8.6, 8192, NVIDIA RTX A2000\r\n\r\n", FIELDS)
    assert gpus == (Gpu("nvidia", "NVIDIA RTX A2000", 8192 << 20, "8.6"),)
    assert driver == "551.23"


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "nonsense", '{"devices": [{}]}', '{"devices": 5}', '{"devices": [1]}']
)
def test_parse_library_refuses_what_is_no_answer(text):
    with pytest.raises(ValueError, match="wrote what is no answer"):
        parse_library(text)
