from pathlib import Path

import msgspec
import pytest

from flatship_service.configfile import load
from flatship_service.errors import ConfigError
from flatship_service.written import Duration, Rate, Size


class Limits(msgspec.Struct, forbid_unknown_fields=True):
    rate: Rate = Rate(0)
    chunk: Size = Size(0)
    idle: Duration = Duration(90)


class Config(msgspec.Struct, forbid_unknown_fields=True):
    listen: str = "127.0.0.1:7000"
    workers: int = 2
    limits: Limits = msgspec.field(default_factory=Limits)
    datastores: dict[str, Path] = msgspec.field(default_factory=dict)
    tags: list[str] = msgspec.field(default_factory=list)


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    endpoint: str


@pytest.fixture
def main(tmp_path: Path) -> Path:
    path = tmp_path / "receiver.toml"
    path.write_text("")
    (tmp_path / "receiver.conf.d").mkdir()
    return path


def fragment(main: Path, name: str, text: str) -> None:
    (main.parent / "receiver.conf.d" / name).write_text(text)


def read(main: Path, text: str) -> Config:
    main.write_text(text)
    return load(main, Config, must_exist=True).value


def test_empty_file_gives_the_defaults(main: Path) -> None:
    assert read(main, "") == Config()


def test_missing_default_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path / "receiver.toml", Config, must_exist=False).value == Config()


def test_missing_file_that_was_asked_for_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"receiver\.toml does not exist"):
        load(tmp_path / "receiver.toml", Config, must_exist=True)


def test_sizes_rates_durations_and_paths_are_read_as_people_write_them(main: Path) -> None:
    config = read(
        main,
        'datastores.ssd1 = "/vmfs/ssd1"\n'
        '[limits]\nrate = "100Mbit"\nchunk = "1MiB"\nidle = "15m"\n',
    )

    assert config.limits == Limits(Rate(12_500_000), Size(1 << 20), Duration(900))
    assert config.datastores == {"ssd1": Path("/vmfs/ssd1")}


def test_size_may_be_a_number(main: Path) -> None:
    assert read(main, "limits.chunk = 4096").limits.chunk == 4096


def test_tables_of_fragments_merge_and_the_last_scalar_counts(main: Path) -> None:
    main.write_text('workers = 1\ntags = ["a"]\n[datastores]\na = "/a"\nb = "/b"\n')
    fragment(main, "20.toml", 'workers = 3\n[datastores]\nb = "/z"\n')
    fragment(main, "10.toml", 'workers = 2\ntags = ["b"]\n[datastores]\nc = "/c"\n')
    fragment(main, "30.txt", "workers = 4\n")

    config = load(main, Config, must_exist=True).value

    assert config.workers == 3
    assert config.tags == ["b"]
    assert config.datastores == {"a": Path("/a"), "b": Path("/z"), "c": Path("/c")}


def test_fragments_count_without_a_main_file(main: Path) -> None:
    main.unlink()
    fragment(main, "10.toml", "workers = 7\n")

    assert load(main, Config, must_exist=False).value.workers == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('workers = "two"', r"receiver\.toml:1: workers: expected int, got str"),
        ("listne = 1", r"receiver\.toml:1: listne: unknown key; did you mean listen\?"),
        (
            "[limits]\nspeed = 1",
            r"receiver\.toml:2: limits\.speed: unknown key; expected one of: rate, chunk, idle",
        ),
        ('limits.rate = "fast"', r"limits\.rate: expected a rate such as .*got 'fast'"),
        ("limits.rate = true", r"limits\.rate: expected a string such as people write, got bool"),
        ("limits.chunk = -1", r"limits\.chunk: expected a number that is not negative"),
        ("limits = 1", r"receiver\.toml:1: limits: expected table, got int"),
        ('tags = ["a",\n  1]', r"receiver\.toml:2: tags\[1\]: expected str, got int"),
        ("datastores.a = 1", r"receiver\.toml:1: datastores\.a: expected a string"),
        ("workers = =", r"receiver\.toml:1: not TOML at column 11: Invalid value"),
    ],
)
def test_error_names_file_key_and_what_was_expected(main: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(main, text)

    assert caught.value.exit_code == 2


def test_error_names_the_fragment_that_set_the_key(main: Path) -> None:
    main.write_text("[limits]\nrate = 1\n")
    fragment(main, "10.toml", '[limits]\nchunk = "huge"\n')

    with pytest.raises(ConfigError, match=r"receiver\.conf\.d/10\.toml:2: limits\.chunk: "):
        load(main, Config, must_exist=True)


def test_missing_key_is_named(main: Path) -> None:
    with pytest.raises(ConfigError, match=r"receiver\.toml: endpoint: required, and missing"):
        load(main, Strict, must_exist=True)


def test_file_that_is_not_utf8_is_named(main: Path) -> None:
    main.write_bytes(b"# \xff")

    with pytest.raises(ConfigError, match="not UTF-8 at byte 2"):
        load(main, Config, must_exist=True)


@pytest.mark.parametrize(
    "text", ["workers = " + "9" * 5000, "tags = " + "[" * 5000, "a" + ".a" * 3000 + " = 1"]
)
def test_numbers_and_tables_without_measure_are_refused(main: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"receiver\.toml: (not TOML|tables or arrays)"):
        read(main, text)


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="directory"):
        load(tmp_path, Config, must_exist=True)
