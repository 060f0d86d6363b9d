import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.export.writing.packing import (
    FORMS,
    LAYOUTS,
    Layout,
    choose_layouts,
    layouts,
    pack,
    unpack,
)

FORM = {form.name: form for form in FORMS}
BITS = {"1bit": 1, "ternary": 8 / 5, **{f"{n}bit": n for n in range(2, 8)}}
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=str)


def kinds(found: list[Layout]) -> list[tuple[str, int]]:
    return [(layout.form.name, layout.step) for layout in found]


@each_layout
@given(count=st.integers(1, 70), zero=st.sampled_from([0, 128]), data=st.data())
def test_unpacking_gives_the_codes_back(layout, count, zero, data):
    steps = data.draw(
        st.lists(st.integers(0, layout.form.levels - 1), min_size=count, max_size=count)
    )
    codes = (layout.lowest + layout.step * np.array(steps)).astype(np.int8).reshape(1, -1)
    packed = pack(codes, layout, zero)

    np.testing.assert_array_equal(unpack(packed), codes.astype(np.int16) + zero)
    assert packed.table.dtype == (np.uint8 if zero else np.int8)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_form_takes_its_width_and_a_small_table(form):
    assert form.bytes_of(840) * 8 == BITS[form.name] * 840
    assert form.table_bytes <= 2048
    assert (form.values * form.tops) <= 256
    assert form.tops**form.bytes >= form.values**form.extras


def test_the_lowest_bits_of_a_byte_hold_the_first_code():
    packed = pack(np.array([-7, 7, 0], np.int8), Layout(FORM["4bit"]))

    assert packed.packed.tolist() == [1 + 16 * 15, 8 + 16 * 0]


def test_five_ternary_codes_are_digits_of_a_byte():
    packed = pack(np.array([-1, 0, 1, 0, -1, 1], np.int8), Layout(FORM["ternary"]))

    assert packed.packed.tolist() == [0 + 3 * 1 + 9 * 2 + 27 * 1 + 81 * 0, 2]
    assert packed.table.shape == (243, 5)


def test_eight_codes_of_three_bits_are_three_bytes():
    codes = np.array([-4, -3, -2, -1, 0, 1, 2, 3], np.int8)  # 0 to 7
    packed = pack(codes, Layout(FORM["3bit"]))
    # the last pair, 6 + 8 * 7 = 2 + 4 * 3 + 16 * 3, lies in the two upper bits of each byte
    own, rest = np.array([0 + 8 * 1, 2 + 8 * 3, 4 + 8 * 5]), np.array([2, 3, 3])
    assert packed.packed.tolist() == [(own + 64 * rest).tolist()]


@pytest.mark.parametrize(
    ("codes", "layout"),
    [
        ([8], Layout(FORM["4bit"])),
        ([-9], Layout(FORM["4bit"])),
        ([17], Layout(FORM["4bit"], 2)),
        ([2], Layout(FORM["4bit"], 2)),
        ([0], Layout(FORM["1bit"], 2)),
        ([2], Layout(FORM["ternary"])),
    ],
)
def test_codes_that_a_layout_does_not_hold_are_refused(codes, layout):
    with pytest.raises(ValueError, match=rf"from {layout.lowest} on, {layout.form.name}"):
        pack(np.array(codes, np.int8), layout)


@pytest.mark.parametrize(
    ("codes", "bits", "expected"),
    [
        ([-1, 1], 1, [("1bit", 2)]),
        ([-1, 0, 1], 2, [("ternary", 1), ("2bit", 1)]),
        ([-2, 0, 1], 2, [("2bit", 1)]),
        ([-3, -1, 1, 3], 2, [("2bit", 2)]),
        ([-3, 0, 3], 3, [("3bit", 1)]),
        ([-1, 0], 3, [("1bit", 1), ("ternary", 1), ("2bit", 1), ("3bit", 1)]),
        ([-7, 6], 4, [("4bit", 1)]),
        ([-64, 63], 7, [("7bit", 1)]),
    ],
)
def test_the_narrowest_layout_that_holds_the_codes_comes_first(codes, bits, expected):
    assert kinds(layouts(np.array(codes, np.int8), bits)) == expected


def test_zeros_between_odd_codes_need_a_layout_beyond_the_grid():
    assert kinds(layouts(np.array([-1, 0, 1], np.int8), 1)) == [("ternary", 1)]
    assert kinds(layouts(np.array([-3, 0, 3], np.int8), 2)) == [("3bit", 1)]
    assert layouts(np.array([-127, 0, 127], np.int8), 7) == []  # all of a byte


def test_codes_of_eight_bits_stay_plain_unless_half_their_bits_suffice():
    assert layouts(np.array([-64, 63], np.int8), 8) == []
    assert kinds(layouts(np.array([-8, 7, 0], np.int8), 8)) == [("4bit", 1)]


def test_a_narrower_layout_is_taken_where_it_saves_more_than_its_table():
    wide = (np.arange(10_000) % 16 - 8).astype(np.int8)
    some, more = ((np.arange(n) % 3 - 1).astype(np.int8) for n in (3_000, 10_000))

    few = choose_layouts({"wide": (wide, 4), "some": (some, 4)})
    many = choose_layouts({"wide": (wide, 4), "some": (some, 4), "more": (more, 4)})

    # 3000 codes take 1500 bytes at 4 bits, and 600 with a table of 1215 more
    assert {name: layout.form.name for name, layout in few.items()} == {
        "wide": "4bit",
        "some": "4bit",
    }
    assert {name: layout.form.name for name, layout in many.items()} == {
        "wide": "4bit",
        "some": "ternary",
        "more": "ternary",
    }
