"""What all messages have in common, and the fields that bodies are made of.

Methods that start with an underscore are for ``envelope`` alone; whoever has a
message uses its fields.
"""

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Any, ClassVar, NoReturn, Self, TypeVar

from flatship_protocol.errors import ErrorCode, MalformedMessage
from flatship_protocol.messages.registry import MessageType

_Number = TypeVar("_Number", bound=IntEnum)


@dataclass(frozen=True, slots=True)
class DiskMessage:
    """A message about one disk in one pass.

    Attributes:
        disk: Handle that the sender chose, 0 to 0xFFFE.
        pass_number: From 1.
    """

    TYPE: ClassVar[MessageType]
    FLAGS: ClassVar[int] = 0  # the bits that SPEC.md defines for the type

    disk: int
    pass_number: int

    def _flags(self) -> int:
        """The header's flags."""
        return 0

    def _body(self) -> bytes:
        """What stands between header and padding."""
        raise NotImplementedError

    @classmethod
    def _parse(cls, disk: int, pass_number: int, flags: int, body: memoryview) -> Self:
        """Inverse of ``_flags`` and ``_body``; the caller has checked the header.

        Raises:
            MalformedMessage: The body is not one of this type.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class ConnectionMessage:
    """A message about the connection or the session; no disk is meant."""

    TYPE: ClassVar[MessageType]
    FLAGS: ClassVar[int] = 0  # the bits that SPEC.md defines for the type

    def _flags(self) -> int:
        """The header's flags."""
        return 0

    def _body(self) -> bytes:
        """What stands between header and padding."""
        raise NotImplementedError

    @classmethod
    def _parse(cls, flags: int, body: memoryview) -> Self:
        """Inverse of ``_flags`` and ``_body``; the caller has checked the header.

        Raises:
            MalformedMessage: The body is not one of this type.
        """
        raise NotImplementedError


def malformed(type_: MessageType, what: str) -> NoReturn:
    """Refuse a message.

    Raises:
        MalformedMessage: Always.
    """
    raise MalformedMessage(f"{type_.name}: {what}")


def unpack(type_: MessageType, layout: Struct, body: memoryview) -> tuple[Any, ...]:
    """Fields of a body that is exactly ``layout``.

    The layout's pad bytes ("x") are SPEC.md's zeros; they pack as zeros, so
    packing the fields again shows whether they were.

    Raises:
        MalformedMessage: Another size, or a reserved byte is not zero.
    """
    if len(body) != layout.size:
        malformed(type_, f"body of {len(body)} bytes; expected {layout.size}")
    fields = layout.unpack(body)
    if layout.pack(*fields) != body:
        malformed(type_, "a reserved byte is not zero")
    return fields


def unpack_front(type_: MessageType, layout: Struct, body: memoryview) -> tuple[Any, ...]:
    """Fields of a body that starts with ``layout`` and goes on behind it.

    Raises:
        MalformedMessage: Too short, or a reserved byte is not zero.
    """
    if len(body) < layout.size:
        malformed(type_, f"body of {len(body)} bytes; expected at least {layout.size}")
    return unpack(type_, layout, body[: layout.size])


def number(type_: MessageType, registry: type[_Number], value: int) -> _Number:
    """The member of ``registry`` that has this number.

    Raises:
        MalformedMessage: None has.
    """
    try:
        return registry(value)
    except ValueError:
        malformed(type_, f"{value} is no {registry.__name__}")


def pack_text(*texts: str) -> bytes:
    """Each text as a string8: a byte of length, then UTF-8.

    Raises:
        ValueError: One takes more than 255 bytes.
    """
    packed = bytearray()
    for text in texts:
        encoded = text.encode()
        packed.append(len(encoded))
        packed += encoded
    return bytes(packed)


def unpack_text(type_: MessageType, body: memoryview, count: int) -> list[str]:
    """Exactly ``count`` string8 and nothing after them.

    Raises:
        MalformedMessage: Too short, too long, or not UTF-8.
    """
    texts = []
    position = 0
    for _ in range(count):
        if position == len(body):
            malformed(type_, "the body ends before its last string")
        start = position + 1
        position = start + body[position]
        if position > len(body):
            malformed(type_, "a string goes past the body's end")
        try:
            texts.append(str(body[start:position], "utf-8"))
        except UnicodeDecodeError:
            malformed(type_, "a string is not UTF-8")
    if position != len(body):
        malformed(type_, f"{len(body) - position} bytes after the last string")
    return texts


def error_code(value: int) -> ErrorCode:
    """The code of that number; one that a newer peer may know and we do not is INTERNAL."""
    try:
        return ErrorCode(value)
    except ValueError:
        return ErrorCode.INTERNAL
