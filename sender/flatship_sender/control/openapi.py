"""The OpenAPI description of the control interface, made of the types that decode and encode it.

python -m flatship_sender.control.openapi > sender/openapi.json
"""

import sys
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final

import msgspec

from flatship_sender.control.faults import FaultAnswer
from flatship_sender.control.operations import EVERYWHERE, JSON, LINES, OPERATIONS, Operation

_REFERENCE: Final = "#/components/schemas/{name}"
_FAULTS: Final = {
    400: "What was sent is not of the form described here.",
    403: "Only root, the daemon's user and the members of the socket's group may ask.",
    404: "There is no such job, source or receiver.",
    409: "It cannot be done to a job in that state, or the key is another job's.",
    413: "The body is larger than 256 KiB.",
    415: "The body is not plain application/json.",
    422: "The form is right and the parts do not fit together.",
    503: "The daemon cannot do it at the moment; try again.",
}


def document() -> dict[str, Any]:
    """The description, of objects that JSON has."""
    types = [*_types(), FaultAnswer]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    schema_of = dict(zip(map(repr, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        described = _described(operation, schema_of)
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "flatship-sender",
            "summary": "The queue of the daemon that sends disks.",
            "description": "Served on a Unix socket, by default `control.sock` in the daemon's"
            " state folder. Times are Unix seconds, sizes bytes.",
            "version": "1",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": components},
    }


def render() -> bytes:
    """The description as it is served and kept: JSON that people can read, too."""
    return msgspec.json.format(msgspec.json.encode(document(), order="sorted"), indent=2) + b"\n"


def _types() -> Iterator[Any]:
    for operation in OPERATIONS:
        yield from (kind for _, kind in operation.answers.values())
        if operation.body is not None:
            yield operation.body


def _described(operation: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [
            *_parameters(operation.path_type, "path"),
            *_parameters(operation.query_type, "query"),
        ],
        "responses": {
            **{
                str(status): {
                    "description": text,
                    "content": {operation.content: _content(operation, schema_of[repr(kind)])},
                }
                for status, (text, kind) in operation.answers.items()
            },
            **{
                str(status): {
                    "description": _FAULTS[status],
                    "content": {JSON: {"schema": schema_of[repr(FaultAnswer)]}},
                }
                for status in sorted({*EVERYWHERE, *operation.faults})
            },
        },
    }
    assert all(HTTPStatus(int(status)) for status in described["responses"])
    if operation.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {JSON: {"schema": schema_of[repr(operation.body)]}},
        }
    return described


def _content(operation: Operation, schema: dict[str, Any]) -> dict[str, Any]:
    """Of a body of lines it says what a line is, for which OpenAPI 3.1 has no word."""
    return {"x-itemSchema": schema} if operation.content == LINES else {"schema": schema}


def _parameters(kind: type[msgspec.Struct], place: str) -> Iterator[dict[str, Any]]:
    (reference,), components = msgspec.json.schema_components([kind], ref_template="{name}")
    schema = components[reference["$ref"]]
    for name, property_ in schema["properties"].items():
        described = dict(property_)
        yield {
            "name": name,
            "in": place,
            "required": place == "path",
            "description": described.pop("description"),
            "schema": _inlined(described, components),
        }


def _inlined(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """A parameter's schema, with what it refers to in it."""
    if "$ref" in schema:
        return dict(components[schema["$ref"]])
    return {
        key: _inlined(value, components) if isinstance(value, dict) else value
        for key, value in schema.items()
    }


if __name__ == "__main__":
    sys.stdout.buffer.write(render())
