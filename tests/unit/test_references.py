"""A number means one image, and every connection is told which before it is used."""

from flatship_sender.references import MAX_REFERENCES, MOST_WANTED, References

ONE, OTHER = b"1" * 16, b"2" * 16


class Link:
    """Something that connections are told apart by."""


def test_each_image_has_one_number_and_each_connection_is_told_once() -> None:
    references, first, second = References(), Link(), Link()
    assert [references.number(image) for image in (ONE, OTHER, ONE)] == [0, 1, 0]
    assert references.unannounced(first, [1, 1, 0]) == [(0, ONE), (1, OTHER)]
    assert references.unannounced(first, [0, 1]) == []
    assert references.unannounced(second, [1]) == [(1, OTHER)]
    assert references.unannounced(second, []) == []


def test_a_connection_that_takes_the_place_of_another_is_told_anew() -> None:
    references, link = References(), Link()
    references.number(ONE)
    references.unannounced(link, [0])
    del link
    assert references.unannounced(Link(), [0]) == [(0, ONE)]


def test_numbers_end_where_the_protocol_ends_them() -> None:
    references = References()
    images = [number.to_bytes(16) for number in range(MAX_REFERENCES + 1)]
    numbers = [references.number(image) for image in images]
    assert numbers == [*range(MAX_REFERENCES), None]
    assert references.number(images[7]) == 7


def test_an_image_whose_copies_are_wanted_is_given_up_after_a_few() -> None:
    references = References()
    references.number(ONE)
    lost = [references.wanted([ONE, ONE]) for _ in range(MOST_WANTED + 2)]
    assert lost == [[]] * (MOST_WANTED - 1) + [[ONE]] + [[], []]
    assert references.number(ONE) is None
    assert references.number(OTHER) == 1


def test_an_image_of_which_most_copies_are_had_is_not_given_up() -> None:
    references = References()
    for _ in range(10):
        references.stored([ONE])
    assert [references.wanted([ONE]) for _ in range(10)] == [[]] * 10
    assert references.wanted([ONE]) == [ONE]
