import json
import os
import subprocess
import sys
import textwrap

import pytest

from paceline.survey import take_survey
from paceline.survey.answers import FILE, Answers
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


@pytest.fixture
def remembered(fake_smi, fake_driver, environ, root, tmp_path):
    """Ask with a cache, whose counter of questions is the second value."""
    calls, cache = tmp_path / "calls", tmp_path / "cache"
    calls.touch()
    fake_smi(f"echo call >> {calls}; {TWO_CARDS}")

    def ask(refresh=False):
        found = survey_nvidia(environ, 30, root, Answers(cache, refresh=refresh))
        return found, len(calls.read_text().splitlines())

    return ask


def test_the_driver_is_asked_once(remembered):
    first, asked = remembered()
    again, still = remembered()

    assert (asked, still) == (1, 1)
    assert (again.gpus.value, again.driver.value) == (first.gpus.value, first.driver.value)
    assert again.cuda_version.value == "12.4"
    assert again.gpus.source.startswith(f"{first.gpus.source}, asked 20")
    assert remembered(refresh=True) == (first, 2)


@pytest.mark.parametrize("what", ["boot", "module", "card", "device", "nvidia-smi", "Paceline"])
def test_what_changed_is_asked_anew(remembered, root, environ, tmp_path, monkeypatch, what):
    for name in ("proc/driver/nvidia", "proc/sys/kernel/random", "sys/bus/pci/devices/0000:01:00.0"):
        (root / name).mkdir(parents=True)
    remembered()
    if what == "boot":
        (root / "proc/sys/kernel/random/boot_id").write_text("another")
    elif what == "module":
        (root / "proc/driver/nvidia/version").write_text("NVRM version: another")
    elif what == "card":
        for name, text in {"class": "0x030000", "vendor": "0x10de", "device": "0x2684"}.items():
            (root / "sys/bus/pci/devices/0000:01:00.0" / name).write_text(text)
    elif what == "device":
        (root / "dev" / "nvidia1").touch()
    elif what == "nvidia-smi":
        with (tmp_path / "bin" / "nvidia-smi").open("a") as file:
            file.write("true\n")
    else:
        monkeypatch.setattr("paceline.__version__", "99")

    assert remembered()[1] == 2
    assert remembered()[1] == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda data: "{",
        lambda data: "[]",
        lambda data: json.dumps(data | {"schema_version": 9}),
        lambda data: json.dumps(data | {"nvidia": data["nvidia"] | {"answer": {"gpus": 7}}}),
        lambda data: json.dumps(data | {"nvidia": data["nvidia"] | {"answer": {"gpus": {"value": [{"x": 1}]}}}}),
    ],
)
def test_a_damaged_memory_is_ignored(remembered, tmp_path, change):
    first, _ = remembered()
    file = tmp_path / "cache" / FILE
    file.write_text(change(json.loads(file.read_text())))

    assert remembered() == (first, 2)


def test_a_cache_that_cannot_be_written_only_costs_time(fake_smi, fake_driver, environ, root, tmp_path):
    fake_smi(TWO_CARDS)
    (tmp_path / "cache").write_text("a file")
    for _ in range(2):
        assert survey_nvidia(environ, 30, root, Answers(tmp_path / "cache")).driver.value == "550.54.14"


def test_what_was_not_answered_in_full_is_not_remembered(fake_smi, fake_driver, environ, root, tmp_path):
    environ["FAKE_CUDA"] = "803"
    program = fake_smi("echo 'failed'; exit 9")
    assert survey_nvidia(environ, 30, root, Answers(tmp_path / "cache")).gpus.value is None
    assert not (tmp_path / "cache").exists()

    text = program.stat()
    program.write_text(f"#!/bin/sh\n{TWO_CARDS}\n")
    os.utime(program, ns=(text.st_atime_ns, text.st_mtime_ns))
    assert survey_nvidia(environ, 30, root, Answers(tmp_path / "cache")).driver.value == "550.54.14"


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
