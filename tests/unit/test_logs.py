import errno
import io
import json
import logging
import re
from collections.abc import Iterator

import pytest
import structlog

from flatship_service import logs


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def logged(name: object, *, as_json: bool = False) -> str:
    stream = io.StringIO()
    logs.configure(as_json=as_json, stream=stream)
    structlog.get_logger().info("disk opened", disk=name)
    return stream.getvalue()


def test_line_begins_with_utc_time_level_and_event() -> None:
    assert re.fullmatch(
        r"timestamp=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z "
        r'level=info event="disk opened" disk=web-01\n',
        logged("web-01"),
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("web 01", '"web 01"'),
        ('a" level=error b="', r'"a\" level=error b=\""'),
        ("a\nlevel=error", r'"a\nlevel=error"'),
        ("\x1b[2J", r'"\x1b[2J"'),
        (r"a\nb", r'"a\\nb"'),
        ("", '""'),
        (b"\xff\n", r'"b' + r"'\\xff\\n'" + '"'),
        (3, "3"),
        (None, "None"),
        ("a=b", '"a=b"'),
    ],
)
def test_value_cannot_leave_its_place_in_the_line(value: object, shown: str) -> None:
    assert logged(value).endswith(f" disk={shown}\n")


def test_hostile_value_stays_one_line_of_json() -> None:
    line = logged("\x1b[2J\n\x7f", as_json=True)

    assert line.count("\n") == 1
    assert line.rstrip("\n").isprintable()
    assert json.loads(line)["disk"] == "\x1b[2J\n\x7f"


def test_lines_below_the_level_are_left_out() -> None:
    stream = io.StringIO()
    logs.configure("warning", stream=stream)

    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")

    assert "quiet" not in stream.getvalue()
    assert "level=warning event=loud" in stream.getvalue()


def test_exception_is_one_line() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)
    try:
        raise ValueError("a\nb")
    except ValueError:
        structlog.get_logger().exception("failed")

    assert stream.getvalue().count("\n") == 1
    assert "ValueError" in stream.getvalue()


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_that_cannot_be_written_costs_nothing_else() -> None:
    logs.configure(stream=FullDisk())
    structlog.get_logger().info("lost")


def test_warnings_of_libraries_take_the_same_form() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)

    logging.getLogger("aiohttp.server").error("bad request\n%s", "\x1b[31m")
    logging.getLogger("aiohttp.access").info("GET /")

    assert stream.getvalue().count("\n") == 1
    assert r'level=error event="bad request\n\x1b[31m" logger=aiohttp.server' in stream.getvalue()
