"""Lists as they are typed: what they mean, and what is said of those that mean nothing."""

from collections.abc import Callable

import pytest
import typer

from qtool.cli.lists import looks_of, names_of, rates_of, seeds_of, windows_of
from qtool.cli.options import batch_size, counts_of


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (seeds_of, "3", 3),
        (seeds_of, "1000", 1000),
        (seeds_of, "7,", [7]),
        (seeds_of, "4, 0,1000000", [4, 0, 1000000]),
        (names_of, "a, b", ["a", "b"]),
        (rates_of, "0.1,5e-4", [0.1, 0.0005]),
        (looks_of, "3, 5,10", [3, 5, 10]),
        (windows_of, "0-0.8,0.2-1", [[0.0, 0.8], [0.2, 1.0]]),
        (windows_of, "0.5-0.5", [[0.5, 0.5]]),
        (batch_size, "8", 8),
        (batch_size, "dynamic", None),
        (lambda text: counts_of(text, "--threads"), "2, 1,2", [2, 1]),
        (lambda text: counts_of(text, "--batch", word="dynamic"), "dynamic,4", [0, 4]),
    ],
)
def test_a_list_is_what_it_says(read: Callable[[str], object], text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text", "option", "said"),
    [
        (seeds_of, "0", "--seeds", "0 is not a number of seeds from 1 to 1000"),
        (seeds_of, "1001", "--seeds", "1001 is not a number of seeds from 1 to 1000"),
        (seeds_of, "1,1", "--seeds", "'1,1' names a seed twice"),
        (seeds_of, "1,x", "--seeds", "'1,x' is neither a number of seeds nor a list"),
        (seeds_of, "-1", "--seeds", "'-1' is neither"),
        (rates_of, "0.1,inf", "--learning-rates", "is not a list of learning rates such as"),
        (rates_of, "0", "--learning-rates", "'0' is not a list of learning rates"),
        (rates_of, "", "--learning-rates", "is not a list of learning rates"),
        (looks_of, "1,3", "--looks", "rising numbers of seeds, from 2 on"),
        (looks_of, "5,3", "--looks", "'5,3' is not a list of rising numbers"),
        (looks_of, "3,3", "--looks", "is not a list of rising numbers"),
        (looks_of, "3,x", "--looks", "is not a list of rising numbers"),
        (looks_of, "x", "--looks", "is not a list of rising numbers"),
        (looks_of, "3,1001", "--looks", "is not a list of rising numbers"),
        (windows_of, "0-0.8,0-0.8", "--windows", "'0-0.8,0-0.8' names a window twice"),
        (windows_of, "0.8-0", "--windows", "is not a list of windows a-b with 0 <= a <= b <= 1"),
        (windows_of, "0-1-1", "--windows", "is not a list of windows"),
        (windows_of, "0-x", "--windows", "is not a list of windows"),
        (windows_of, "0-1.5", "--windows", "is not a list of windows"),
        (batch_size, "0", "--batch", "'0' is not a number of images; give one, or dynamic"),
        (batch_size, "two", "--batch", "'two' is not a number of images"),
        (
            lambda text: counts_of(text, "--threads"),
            "1,dynamic",
            "--threads",
            "'1,dynamic' is not a list of whole numbers from 1, such as 1,2",
        ),
        (
            lambda text: counts_of(text, "--batch", word="dynamic"),
            "0",
            "--batch",
            "'0' is not a list of whole numbers from 1, such as 1,2, or dynamic",
        ),
    ],
)
def test_a_list_that_means_nothing_is_refused_with_its_option(
    read: Callable[[str], object], text: str, option: str, said: str
) -> None:
    with pytest.raises(typer.BadParameter) as refused:
        read(text)
    assert refused.value.param_hint == option
    assert said in refused.value.message
