import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.export.writing.packing import pack, part_widths, unpack


@pytest.mark.parametrize("bits", range(1, 8))
def test_part_widths_are_powers_of_two_that_add_up(bits):
    assert sum(part_widths(bits)) == bits
    assert all(8 % width == 0 for width in part_widths(bits))


@given(
    bits=st.integers(1, 7), step=st.sampled_from([1, 2]), count=st.integers(1, 70), data=st.data()
)
def test_unpacking_gives_the_codes_back(bits, step, count, data):
    lowest = -(2 ** (bits - 1)) * step if bits < 7 else -64
    step = step if bits < 7 else 1
    index = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count))
    codes = (lowest + step * np.array(index)).astype(np.int8).reshape(1, -1)
    packed = pack(codes, bits, lowest, step)

    np.testing.assert_array_equal(unpack(packed), codes)
    assert packed.nbytes <= count * bits / 8 + len(packed.parts)


def test_the_lowest_bits_of_a_byte_hold_the_first_code():
    packed = pack(np.array([-7, 7, 0], np.int8), 4, -7, 1)

    assert packed.parts[0].packed.tolist() == [0 + 16 * 14, 7]


def test_three_bits_are_two_and_one():
    packed = pack(np.array([3, -4, 1], np.int8), 3, -4, 1)
    high, low = packed.parts

    assert high.packed.tolist() == [3 + 4 * 0 + 16 * 2]  # 7, 0, 5 without their last bit
    assert low.packed.tolist() == [1 + 0 + 4]


@pytest.mark.parametrize(
    ("codes", "bits", "lowest", "step"),
    [([8], 4, -7, 2), ([9], 4, -7, 1), ([-8], 4, -7, 1), ([0], 1, -1, 2)],
)
def test_a_code_off_the_grid_is_refused(codes, bits, lowest, step):
    with pytest.raises(ValueError, match="do not fit"):
        pack(np.array(codes, np.int8), bits, lowest, step)


def test_eight_bits_need_no_packing():
    with pytest.raises(ValueError, match="1 to 7"):
        part_widths(8)
