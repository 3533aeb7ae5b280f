"""Who may say what when: transition tables of both ends, epochs, credit, duplicates.

Pure: messages go in, decisions come out. ``tables`` are the specification
(SPEC.md, "Disk states"); ``sender`` and ``receiver`` follow them and keep the
accounts of their end.
"""

from flatship_protocol.session.receiver import ReceiverDisk, ReceiverSession, Verdict
from flatship_protocol.session.sender import NOT_SENT, Acknowledged, SenderDisk, SenderSession
from flatship_protocol.session.tables import (
    RECEIVER_RECEIVES,
    SENDER_RECEIVES,
    SENDER_SENDS,
    ReceiverState,
    SenderState,
    ToReceiver,
    ToSender,
)

__all__ = [
    "NOT_SENT",
    "RECEIVER_RECEIVES",
    "SENDER_RECEIVES",
    "SENDER_SENDS",
    "Acknowledged",
    "ReceiverDisk",
    "ReceiverSession",
    "ReceiverState",
    "SenderDisk",
    "SenderSession",
    "SenderState",
    "ToReceiver",
    "ToSender",
    "Verdict",
]
