import json
from pathlib import Path

from flatship_sender.control.faults import CODES
from flatship_sender.control.openapi import document, render
from flatship_sender.control.operations import OPERATIONS

KEPT = Path(__file__).parents[2] / "sender" / "openapi.json"


def test_the_document_that_is_kept_is_the_one_that_the_types_make() -> None:
    make_anew = "python -m flatship_sender.control.openapi > sender/openapi.json"
    assert KEPT.read_bytes() == render(), f"to make it anew: {make_anew}"


def test_every_operation_is_described() -> None:
    paths = json.loads(render())["paths"]
    described = {
        (method.upper(), path): each["operationId"]
        for path, methods in paths.items()
        for method, each in methods.items()
    }
    assert described == {(each.method, each.path): each.name for each in OPERATIONS}


def references(part: object) -> set[str]:
    if isinstance(part, dict):
        found = {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
        return found.union(*(references(each) for each in part.values()))
    if isinstance(part, list):
        return set[str]().union(*(references(each) for each in part))
    return set()


def test_what_the_document_refers_to_is_in_it() -> None:
    made = document()
    known = {f"#/components/schemas/{name}" for name in made["components"]["schemas"]}
    assert references(made) <= known


def test_every_answer_has_a_body_that_is_described() -> None:
    for methods in document()["paths"].values():
        for each in methods.values():
            for status, answer in each["responses"].items():
                assert answer["content"], (each["operationId"], status)


def test_codes_of_faults_are_words() -> None:
    assert all(code.replace("_", "").isalpha() and code.islower() for code in CODES)
