"""The list of guards is that of this tree."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LISTS = ("of_daemon", "of_domains", "of_receiver", "of_sender", "of_the_rest")


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "guards"))
    return [guard for each in LISTS for guard in import_module(each).GUARDS]


def test_what_each_guard_takes_out_stands_in_its_file_once(guards: list[Any]) -> None:
    places = {each.name: (ROOT / each.file).read_text().count(each.code) for each in guards}
    assert {name: count for name, count in places.items() if count != 1} == {}


def test_each_guard_changes_something_and_names_tests_that_there_are(guards: list[Any]) -> None:
    assert all(each.code != each.without for each in guards)
    named = {test for each in guards for test in each.tests}
    assert {test for test in named if not (ROOT / test).exists()} == set()
    assert len({each.name for each in guards}) == len(guards) > 70
