import pytest

from flatship_protocol.errors import ErrorCode, NameRefused
from flatship_protocol.names import check_name


@pytest.mark.parametrize(
    "name",
    [
        "web01",
        "web01_1",
        "Web Server (old)",
        "a",
        "a" * 80,
        "db-12345",
        "x.y",
        "flat",
        "db-1234567",
    ],
)
def test_good_names_are_taken(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", ".hidden", "a/b", "../a", "a\0", "a\n", "ä", "a\u202eb", "a" * 81),
        *("a:b", 'a"b', "a\\b", "a ", " a", "a."),
        *("a-flat", "a-delta", "a-ctk", "a-rdm", "a-sesparse", "a-000001", "a-f001", "a-FLAT"),
    ],
)
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(NameRefused) as caught:
        check_name(name)
    assert caught.value.code is ErrorCode.NAME_REFUSED
    assert "\n" not in str(caught.value)


def test_a_refusal_is_the_commands_fault_and_repeats_no_more_than_a_name() -> None:
    with pytest.raises(NameRefused) as caught:
        check_name("a" * 10_000)
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 250
