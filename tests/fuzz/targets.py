"""Every decoder. To add one, write what it promises as a ``Target`` and put it into a list."""

from typing import Final

from fuzz import (
    domain_targets,
    file_targets,
    handshake_targets,
    history_targets,
    image_targets,
    journal_targets,
    message_targets,
    payload_targets,
    receiver_session_target,
    record_targets,
    sender_session_target,
    text_targets,
)
from fuzz.target import Target

TARGETS: Final[tuple[Target, ...]] = (
    *handshake_targets.TARGETS,
    *record_targets.TARGETS,
    *message_targets.TARGETS,
    *payload_targets.TARGETS,
    *history_targets.TARGETS,
    *receiver_session_target.TARGETS,
    *sender_session_target.TARGETS,
    *text_targets.TARGETS,
    *journal_targets.TARGETS,
    *file_targets.TARGETS,
    *image_targets.TARGETS,
    *domain_targets.TARGETS,
)

BY_NAME: Final = {target.name: target for target in TARGETS}
assert len(BY_NAME) == len(TARGETS)
