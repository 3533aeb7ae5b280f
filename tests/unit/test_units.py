import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatship_service.units import (
    format_duration,
    format_rate,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("20MB", 20_000_000),
        ("20 MB", 20_000_000),
        ("20mb", 20_000_000),
        ("1.5GiB", 3 << 29),
        ("4k", 4096),
        ("2T", 2 << 40),
        ("2TB", 2 * 10**12),
        (" 1PiB ", 1 << 50),
    ],
)
def test_size_is_read_as_people_write_it(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "-1", "MB", "1.MB", ".5MB", "20Mbit", "1iB", "1e6", "1_000", "١MB", "20MB/s"]
)
def test_what_is_no_size_is_refused_and_the_message_says_what_is_expected(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size such as"):
        parse_size(text)


@pytest.mark.parametrize("text", ["8EiB", "9" * 30])
def test_size_that_no_file_can_have_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="more than 8 EiB"):
        parse_size(text)


def test_endless_number_is_refused_before_it_is_computed() -> None:
    with pytest.raises(ValueError, match="expected a size"):
        parse_size("9" * 100_000)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("20MB", 20_000_000),
        ("20MB/s", 20_000_000),
        ("1MiB/s", 1 << 20),
        ("100Mbit", 12_500_000),
        ("100Mbit/s", 12_500_000),
        ("100Mbps", 12_500_000),
        ("8bit", 1),
        ("1Gbits", 125_000_000),
        ("4096", 4096),
        ("20M", 20 << 20),
    ],
)
def test_rate_is_read_in_bytes_or_bits_per_second(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


def test_rate_that_may_mean_bits_or_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="write Mbit or MB instead"):
        parse_rate("20Mb")


@pytest.mark.parametrize("text", ["", "fast", "20MB/min", "20 furlongs"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a rate such as"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("90s", 90.0),
        ("15m", 900.0),
        ("15min", 900.0),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        ("1d", 86400.0),
        ("500ms", 0.5),
        ("1.5h", 5400.0),
        ("2w", 1209600.0),
    ],
)
def test_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-5m", "1h30", "5 minutes", "1y", "1M", "9" * 50])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration such as"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 << 29, "1.5 GiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (1 << 50, "1.0 PiB"),
    ],
)
def test_size_is_written_in_the_unit_that_keeps_it_short(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, (1 << 60)))
def test_written_size_reads_back_within_what_rounding_took(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.06)


@given(st.integers(0, 10**17))
def test_written_rate_reads_back_within_what_rounding_took(rate: int) -> None:
    assert parse_rate(format_rate(rate)) == pytest.approx(rate, rel=0.06)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (725, "12m 05s"),
        (3600, "1h 00m"),
        (12000, "3h 20m"),
        (86400, "1d 00h"),
        (187200, "2d 04h"),
        (8640000, "100d 00h"),
    ],
)
def test_duration_is_written_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(0, 10**8))
def test_written_duration_reads_back_within_its_smaller_unit(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=0.05, abs=1)
