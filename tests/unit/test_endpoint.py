import pytest

from flatship_protocol.endpoint import Endpoint, parse_endpoint


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("esx1.example.com:7000", Endpoint("esx1.example.com", 7000)),
        ("192.0.2.1:1", Endpoint("192.0.2.1", 1)),
        ("[2001:db8::1]:65535", Endpoint("2001:db8::1", 65535)),
        ("localhost:0", Endpoint("localhost", 0)),
    ],
)
def test_endpoint_survives_its_text_form(text: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(text) == endpoint
    assert str(endpoint) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "host", "host:", ":7000", "host:65536", "host:-1", "host:7000 ", "2001:db8::1:7000",
        "[]:1", "[host]:1", "[::1]", "a b:1", "-a:1", "a..b:1", "host\n:1", "host:٣",
        f"{'a' * 64}:1",        f"{'a.' * 130}a:1", "user@host:1", "[fe80::1%eth0\n]:1",
    ],
)  # fmt: skip
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_endpoint(text)
