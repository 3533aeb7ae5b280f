from itertools import product
from typing import Any

import msgspec
import pytest

from flatship_sender.order import ADAPTERS, FORMATS, HARDWARE_VERSIONS, PROVISIONINGS
from flatship_sender.queue.model import Job, JobSpec, JobState, Submission
from flatship_sender.queue.states import (
    FINAL,
    MAY_START,
    TRANSITIONS,
    Who,
    WrongState,
    check,
)

LEAST = {"sources": ["/dev/vg0/web"], "receiver": "store1", "vm": "web"}


def decoded(**spec: Any) -> Submission:
    return msgspec.json.decode(msgspec.json.encode({"spec": LEAST | spec}), type=Submission)


def test_a_job_of_three_words_has_the_defaults_of_send() -> None:
    spec = decoded().spec
    assert (spec.format, spec.provisioning, spec.adapter) == ("vmfs", "thin", "lsilogic")
    assert (spec.connections, spec.compression, spec.patience) == (4, "auto", 86400.0)


@pytest.mark.parametrize(
    "refused",
    [
        {"sources": []},
        {"sources": ["web.raw"]},
        {"sources": ["/a\0b"]},
        {"sources": ["/a", "/./a"]},
        {"sources": ["/a"] * 257},
        {"sources": ["/" + "a" * 4096]},
        {"source_format": []},
        {"source_format": ["raw", "raw"]},
        {"source_format": ["floppy"]},
        {"receiver": "../store"},
        {"receiver": "store1\n"},
        {"vm": ""},
        {"vm": "../web"},
        {"vm": "a" * 81},
        {"datastore": "a/b"},
        {"until_downtime": 60},
        {"snapshot": True},
        {"snapshot_size": 1 << 30, "live": True},
        {"until_downtime": 0, "live": True},
        {"connections": 15},
        {"compression": 20},
        {"limit": 100},
        {"patience": -1},
        {"unheard_of": 1},
    ],
)
def test_a_job_that_no_worker_could_send_is_refused_where_it_is_decoded(
    refused: dict[str, Any],
) -> None:
    with pytest.raises(msgspec.ValidationError):
        decoded(**refused)


def test_a_format_is_that_of_all_sources_or_each_has_its_own() -> None:
    web = {"sources": ["/a", "/b"]}
    for said, meant in (
        (None, (None, None)),
        ("qcow2", ("qcow2", "qcow2")),
        (["raw", None], ("raw", None)),
    ):
        sources = decoded(**web, source_format=said).spec.named_sources()
        assert [each.path for each in sources] == ["/a", "/b"]
        assert tuple(each.format for each in sources) == meant
    with pytest.raises(msgspec.ValidationError, match="lists 1 formats, and there are 2 sources"):
        decoded(**web, source_format=["raw"])


def test_a_refusal_of_a_name_says_what_to_do() -> None:
    with pytest.raises(msgspec.ValidationError, match="starts with a dot; choose another name"):
        decoded(vm=".web")


def test_the_words_of_a_job_are_those_of_the_command() -> None:
    for word in FORMATS:
        decoded(format=word)
    for word in PROVISIONINGS:
        decoded(provisioning=word)
    for word in ADAPTERS:
        decoded(adapter=word)
    for version in HARDWARE_VERSIONS:
        decoded(hardware_version=version)
    fields = {field.name: field.type for field in msgspec.structs.fields(JobSpec)}
    assert set(fields["format"].__args__) == set(FORMATS)
    assert set(fields["provisioning"].__args__) == set(PROVISIONINGS)
    assert set(fields["adapter"].__args__) == set(ADAPTERS)
    assert set(fields["hardware_version"].__args__) == set(HARDWARE_VERSIONS)


def test_an_interface_can_be_described_from_the_types() -> None:
    _, components = msgspec.json.schema_components([Submission, Job])
    assert components["JobSpec"]["properties"]["sources"]["maxItems"] == 256


def test_every_state_has_a_row_and_those_without_a_way_out_are_the_ends() -> None:
    assert set(TRANSITIONS) == set(JobState)
    assert {JobState.DONE, JobState.FAILED, JobState.CANCELLED} == FINAL
    assert {JobState.QUEUED, JobState.WAITING} == MAY_START


def test_whatever_the_table_does_not_name_is_refused_and_says_what_can_be_done() -> None:
    for state, to, who in product(JobState, JobState, Who):
        if who in TRANSITIONS[state].get(to, ()):
            check(7, state, to, who)
        else:
            with pytest.raises(WrongState, match=f"job 7 is {state}") as refused:
                check(7, state, to, who)
            assert refused.value.exit_code == 11


def test_a_running_job_ends_as_was_wanted_by_its_daemons_hand_alone() -> None:
    for wish in (JobState.PAUSED, JobState.CANCELLED):
        assert TRANSITIONS[JobState.RUNNING][wish] == {Who.DAEMON}


def test_every_state_that_is_no_end_can_come_to_one() -> None:
    reached = set(FINAL)
    while more := {
        state for state, ways in TRANSITIONS.items() if state not in reached and reached & set(ways)
    }:
        reached |= more
    assert reached == set(JobState)
