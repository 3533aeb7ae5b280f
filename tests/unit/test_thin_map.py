"""What thin_dump writes, of either generation, becomes extents; what is doubtful an error."""

import io

import pytest

from flatship_protocol.extents import Extent, ExtentKind
from flatship_sender.sources.lvm.thin_map import ChunkMap, MapUnreadable, read_thin_map

MIB = 1 << 20
SIZE = 16 * MIB
HEAD = (
    '<superblock uuid="" time="1" transaction="3" data_block_size="128" nr_data_blocks="16384">\n'
)
DEVICE = (
    '  <device dev_id="7" mapped_blocks="{}" transaction="2" creation_time="0" snap_time="1">\n'
)
TAIL = "  </device>\n</superblock>\n"
OLD = (
    HEAD
    + DEVICE.format(19)
    + '    <range_mapping origin_begin="0" data_begin="40" length="17" time="0"/>\n'
    + '    <single_mapping origin_block="80" data_block="3" time="0"/>\n'
    + '    <single_mapping origin_block="255" data_block="4" time="0"/>\n'
    + TAIL
)
SHARED = (
    HEAD
    + '  <def name="0">\n'
    + '    <range_mapping origin_begin="16" data_begin="0" length="16" time="0"/>\n'
    + "  </def>\n"
    + DEVICE.format(17)
    + '    <ref name="0"/>\n    <single_mapping origin_block="0" data_block="99" time="1"/>\n'
    + TAIL
)


def chunks(mapped: ChunkMap) -> list[tuple[int, int, bool]]:
    return [
        (extent.offset // MIB, extent.length // MIB, extent.kind is ExtentKind.DATA)
        for extent in mapped.extents(0, SIZE)
    ]


def read(text: str, device: int = 7) -> ChunkMap:
    return read_thin_map(io.BytesIO(text.encode()), device, SIZE)


def test_chunks_that_a_mapping_touches_are_data_and_all_others_holes() -> None:
    assert chunks(read(OLD)) == [
        (0, 2, True),
        (2, 3, False),
        (5, 1, True),
        (6, 9, False),
        (15, 1, True),
    ]


def test_mappings_that_devices_share_are_those_of_the_device() -> None:
    assert chunks(read(SHARED)) == [(0, 2, True), (2, 14, False)]


def test_extents_of_a_part_begin_and_end_where_it_does() -> None:
    found = list(read(OLD).extents(MIB + 512, 4 * MIB))
    assert found == [
        Extent(MIB + 512, MIB - 512, ExtentKind.DATA),
        Extent(2 * MIB, 3 * MIB, ExtentKind.HOLE),
        Extent(5 * MIB, 512, ExtentKind.DATA),
    ]


def test_mappings_beyond_the_end_of_the_volume_do_not_count() -> None:
    beyond = OLD.replace('origin_block="255"', 'origin_block="256"')
    assert chunks(read(beyond))[-1] == (6, 10, False)


@pytest.mark.parametrize("length", range(0, len(OLD) - 1, 37))
def test_a_dump_that_is_cut_short_says_nothing(length: int) -> None:
    with pytest.raises(MapUnreadable):
        read(OLD[:length])


@pytest.mark.parametrize(
    "text",
    [
        OLD.replace('mapped_blocks="19"', 'mapped_blocks="20"'),
        OLD.replace('dev_id="7"', 'dev_id="8"'),
        OLD.replace('length="17"', 'length="many"'),
        OLD.replace(' data_block_size="128"', ""),
        SHARED.replace('<ref name="0"/>', '<ref name="1"/>'),
        HEAD + "</superblock>\n",
        "Error: metadata is damaged\n",
    ],
    ids=["a mapping is missing", "another device", "no number", "no block size", "no such def",
         "no device", "no XML"],
)  # fmt: skip
def test_a_dump_that_does_not_add_up_says_nothing(text: str) -> None:
    with pytest.raises(MapUnreadable):
        read(text)
