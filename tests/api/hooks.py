"""Lets what schemathesis makes up reach the queue: most of it names what is not there.

Runs in the environment of scripts/schemathesis-env.
"""

import os
from typing import Any

import schemathesis

SOURCE = os.environ["FLATSHIP_SOURCE"]
RECEIVER = os.environ["FLATSHIP_RECEIVER"]
LATER = 4_000_000_000.0  # Unix seconds: no job starts while this runs


@schemathesis.hook
def map_body(_context: Any, body: Any) -> Any:
    """Put a source and a receiver that exist in the place of any other that may be."""
    spec = body.get("spec") if isinstance(body, dict) else None
    if not isinstance(spec, dict):
        return body
    sources, receiver = spec.get("sources"), spec.get("receiver")
    if isinstance(sources, list) and sources and all(map(_is_path, sources)):
        spec["sources"] = [SOURCE]
    if isinstance(receiver, str) and receiver.isascii() and receiver.isalnum():
        spec["receiver"] = RECEIVER
    moment = body.get("not_before")
    if moment is None or (isinstance(moment, float) and 0 <= moment < LATER):
        body["not_before"] = LATER
    return body


def _is_path(source: object) -> bool:
    return isinstance(source, str) and source.startswith("/")
