"""Has qemu-img check the tables of a disk image before a byte of it is sent.

A damaged image reads without an error in many places, and as the wrong data.
"""

import json
import os
import shlex
import shutil
import subprocess
from typing import Any

import msgspec

from flatship_protocol.errors import SourceUnsuitable
from flatship_sender.sources.containers import ImageFormat
from flatship_sender.sources.image_chain import Chain, Layer
from flatship_sender.sources.image_export import ImageProgramMissing

_DAMAGED, _LEAKS, _NOT_KNOWN = 2, 3, 63  # how qemu-img check ends


class _Result(msgspec.Struct, rename="kebab"):
    check_errors: int = 0
    corruptions: int = 0
    leaks: int = 0


def check_images(source: str, chain: Chain, *, live: bool) -> None:
    """Refuse an image if it, or one that it stands on, is damaged.

    Args:
        source: What the operator calls it.
        chain: Read, not changed. VHD knows no check, nor does raw.
        live: Whether it is read although others may have it open.

    Raises:
        ImageProgramMissing: There is no qemu-img.
        SourceUnsuitable: Tables are wrong, clusters leaked, or no check could be made.
    """
    for layer in chain.layers:
        if layer.format not in (ImageFormat.RAW, ImageFormat.VHD):
            _check(source, layer, live=live)


def _check(source: str, layer: Layer, *, live: bool) -> None:
    path = layer.file.path
    where = "" if path == os.path.realpath(source) else f": {path}"
    program = shutil.which("qemu-img")
    if program is None:
        raise ImageProgramMissing(
            f"source {source} is a disk image, and qemu-img, which checks it, is not installed:"
            " install the package qemu-utils"
        )
    node: dict[str, Any] = layer.node(None, live=live)
    done = subprocess.run(
        [program, "check", "--output=json", f"json:{json.dumps(node, ensure_ascii=False)}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode in (0, _NOT_KNOWN):
        return
    found = _parse(done.stdout)
    name = shlex.quote(path)
    if done.returncode == _LEAKS:
        raise SourceUnsuitable(
            f"source {source}{where} has clusters that belong to nothing ({found.leaks}), as after"
            f" a crash of its guest's host; mend it with qemu-img check -r leaks {name}"
        )
    if done.returncode == _DAMAGED or found.corruptions or found.check_errors:
        raise SourceUnsuitable(
            f"source {source}{where} is damaged: qemu-img check finds errors"
            f" ({found.corruptions + found.check_errors}); see what it says of {name}, and"
            " restore the image, or repair a copy of it with qemu-img check -r all"
        )
    said = done.stderr.decode(errors="replace").strip().splitlines()
    raise SourceUnsuitable(
        f"source {source}{where} does not pass qemu-img check:"
        f" {said[0] if said else 'it gave no reason'}; restore it, or copy it again"
    )


def _parse(text: bytes) -> _Result:
    try:
        return msgspec.json.decode(text, type=_Result)
    except msgspec.DecodeError:
        return _Result()
