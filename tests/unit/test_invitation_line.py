import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatship_protocol.endpoint import Endpoint
from flatship_protocol.errors import UsageError
from flatship_protocol.invitation import (
    Invitation,
    InvitationError,
    decode_invitation,
    encode_invitation,
)

INVITATION = Invitation(
    endpoint=Endpoint("esx1.example.com", 7000),
    public=bytes(range(32)),
    id=b"i" * 16,
    secret=b"S" * 32,
)
LINE = encode_invitation(INVITATION)


@pytest.mark.parametrize("host", ["esx1.example.com", "192.0.2.1", "2001:db8::1"])
def test_invitation_survives_its_line(host: str) -> None:
    invitation = Invitation(Endpoint(host, 7000), INVITATION.public, b"i" * 16, b"S" * 32)

    assert decode_invitation(encode_invitation(invitation)) == invitation


def test_line_is_one_word_that_begins_with_its_version_and_where_to_go() -> None:
    assert LINE.startswith("flatship1:esx1.example.com:7000:")
    assert LINE.split() == [LINE]


def test_white_space_around_the_line_does_not_matter() -> None:
    assert decode_invitation(f"  {LINE}\r\n") == INVITATION


@pytest.mark.parametrize("position", range(len("flatship1:"), len(LINE)))
def test_every_mistyped_character_is_found(position: int) -> None:
    old = LINE[position]
    new = "x" if old != "x" else "y"

    with pytest.raises(InvitationError):
        decode_invitation(LINE[:position] + new + LINE[position + 1 :])


@pytest.mark.parametrize("length", range(len(LINE)))
def test_every_cut_line_is_found(length: int) -> None:
    with pytest.raises(InvitationError):
        decode_invitation(LINE[:length])


@given(st.text(string.printable, max_size=200))
def test_nothing_else_is_an_invitation(text: str) -> None:
    with pytest.raises(UsageError):
        decode_invitation("flatship1:" + text)


def test_errors_do_not_repeat_the_secret() -> None:
    blob = LINE.rpartition(":")[2]

    with pytest.raises(InvitationError) as caught:
        decode_invitation(LINE + "A")

    assert blob not in str(caught.value)
    assert "copy the whole line" in str(caught.value)


def test_repr_hides_the_secret() -> None:
    assert "SSSS" not in repr(INVITATION)
