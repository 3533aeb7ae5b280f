"""Names of VMs, disks and datastores: what a name may be, at both ends.

A name on the wire is a name, never a path: it becomes a folder or the start of a
file's name at the datastore, and nothing else. The sender checks before it opens
anything, the receiver before it touches the datastore.
"""

import re
from typing import Final

from flatship_protocol.constants import MAX_NAME_LENGTH
from flatship_protocol.errors import NameRefused

_NAME: Final = re.compile(r"[A-Za-z0-9._ ()-]+")
# Base names that would make one disk's descriptor another disk's file.
_RESERVED_ENDING: Final = re.compile(
    r"-(flat|delta|ctk|rdm|sesparse|f[0-9]{3,}|[0-9]{6})\Z", re.IGNORECASE
)


def check_name(name: str) -> None:
    """Refuse what cannot name a VM, a disk (without ``.vmdk``) or a datastore.

    A blank at either end and a dot at the end are refused too: Windows
    clients and shells lose them on the way.

    Raises:
        NameRefused: It says why, and shows no more of the name than a name may have.
    """
    if problem := name_problem(name):
        raise NameRefused(name[: MAX_NAME_LENGTH + 1], problem)


def name_problem(name: str) -> str | None:
    """What is wrong with a name, as the end of a sentence that starts with "it"; or None."""
    if not name:
        return "is empty"
    if len(name) > MAX_NAME_LENGTH:
        return f"has {len(name)} characters, at most {MAX_NAME_LENGTH} are allowed"
    if not _NAME.fullmatch(name):
        return "may contain ASCII letters, digits, blanks and . _ ( ) - only"
    if name.startswith("."):
        return "starts with a dot"
    if name != name.strip(" ") or name.endswith("."):
        return "starts or ends with a blank, or ends with a dot"
    if ending := _RESERVED_ENDING.search(name):
        return f"ends in {ending.group()}, which marks files that belong to another disk"
    return None
