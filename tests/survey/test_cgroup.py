import psutil
import pytest

from paceline.survey import memory
from paceline.survey.cgroup import memory_limit

GIB = 1 << 30


@pytest.fixture
def files(tmp_path):
    def write(tree: dict[str, str]):
        for name, text in tree.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def test_version_2_takes_the_tightest_group_on_the_way_up(files):
    root = files(
        {
            "proc/self/cgroup": "0::/user/app\n",
            "sys/fs/cgroup/user/app/memory.max": "max\n",
            "sys/fs/cgroup/user/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/user/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/user/memory.stat": f"anon 1\ninactive_file {GIB}\n",
            "sys/fs/cgroup/memory.max": f"{8 * GIB}\n",
        }
    )
    found = memory_limit(root)
    assert (found.limit, found.available) == (4 * GIB, 2 * GIB)
    assert found.source.endswith("sys/fs/cgroup/user/memory.max")


def test_version_1_in_a_container_that_sees_the_hosts_path(files):
    root = files(
        {
            "proc/self/cgroup": "9:name=systemd:/\n4:memory:/docker/0123\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB}\n",
        }
    )
    found = memory_limit(root)
    assert (found.limit, found.available) == (2 * GIB, 0)


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"proc/self/cgroup": ""},
        {"proc/self/cgroup": "nonsense\n"},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "what?\n"},
        {
            "proc/self/cgroup": "4:memory:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    ],
)
def test_no_limit(files, tree):
    assert memory_limit(files(tree)) is None


def test_the_survey_takes_the_limit_and_names_it(files):
    root = files(
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{64 << 20}\n",
            "sys/fs/cgroup/memory.current": f"{63 << 20}\n",
        }
    )
    assert memory.memory_total(root).value == 64 << 20
    assert memory.memory_available(root).value == 1 << 20
    assert memory.memory_total(root).source.endswith("memory.max")


def test_a_limit_above_the_machine_is_none(files):
    root = files({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{1 << 50}\n"})
    assert memory.memory_total(root).value == psutil.virtual_memory().total
