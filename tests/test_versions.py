import pytest

from paceline.versions import at_least, numbers, order


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("535.104.05", (535, 104, 5)),
        ("580", (580,)),
        ("580.0.0", (580,)),
        ("0", (0,)),
        ("6.1.0-13-amd64", (6, 1)),
        ("2.35-0ubuntu3.8", (2, 35)),
    ],
)
def test_numbers(text, value):
    assert numbers(text) == value


@pytest.mark.parametrize("text", ["", "b10000", "-1", ".5", "Sonoma"])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(ValueError, match="does not start with a version number"):
        numbers(text)


@pytest.mark.parametrize(
    ("found", "floor", "enough"),
    [
        ("535.104", "535.9", True),
        ("535.9", "535.104", False),
        ("10.0", "9.0", True),
        ("13", "13.0", True),
        ("580", "580.65.06", False),
        ("2.4", "2.36", False),
    ],
)
def test_at_least_compares_by_value(found, floor, enough):
    assert at_least(found, floor) is enough


def test_order_of_releases():
    shuffled = ["b10000", "0.3.36", "1.0", "b9999", "0.3.9", "1.0rc1", "b10000-rc"]
    assert sorted(shuffled, key=order) == ["b9999", "b10000", "b10000-rc", "0.3.9", "0.3.36", "1.0rc1", "1.0"]


def test_a_v_before_a_version_means_nothing():
    shuffled = ["v1.10.0", "v1.2.3", "v1.9", "1.2.4", "b10000", "v1.10.0-rc.1"]
    assert sorted(shuffled, key=order) == ["b10000", "v1.2.3", "1.2.4", "v1.9", "v1.10.0-rc.1", "v1.10.0"]
    assert order("v1.2.3") == order("1.2.3")
