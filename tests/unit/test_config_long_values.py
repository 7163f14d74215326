"""config: what a file holds without end does not come back in messages without end."""

from __future__ import annotations

from pathlib import Path

import pytest

from haclusterd.config import ConfigError, Problem, load_cluster
from tests.unit.config_example import changed


def problems_of(folder: Path, text: str) -> list[Problem]:
    path = folder / "haclusterd.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_cluster(path)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ('id = "fs-a"', "fs-a"),
        ('name = "east"', "east"),
        ('"203.0.113.10/24 dev eth0"', "203.0.113.10/24 dev eth0"),
        ('preset = "lan"', "lan"),
    ],
)
def test_a_value_of_100_kb_is_cut(tmp_path: Path, place: str, value: str) -> None:
    problems = problems_of(tmp_path, changed(place, place.replace(value, "x" * 100_000)))
    assert problems
    for problem in problems:
        assert len(str(problem)) < 1000 + len(str(tmp_path)), str(problem)[:300]


def test_a_key_of_100_kb_is_cut_and_compared_in_no_time(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, changed("[heartbeat]", f"[heartbeat]\n{'k' * 100_000} = 1"))
    assert len(str(problem)) < 1000 + len(str(tmp_path))


def test_of_a_file_full_of_errors_the_first_ones_are_told(tmp_path: Path) -> None:
    keys = "".join(f"k{n} = 1\n" for n in range(20_000))
    problems = problems_of(tmp_path, changed("[heartbeat]", f"[heartbeat]\n{keys}"))
    assert len(problems) == 101
    assert "19900 more" in problems[-1].message
