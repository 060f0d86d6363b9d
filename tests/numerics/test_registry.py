"""Tables of choices and strict sections: every mistake is named, and all of them at once."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from pydantic import Field

from qtool.errors import RecipeError
from qtool.numerics.estimators import ESTIMATORS
from qtool.problems import ProblemsError, did_you_mean
from qtool.registry import Registry
from qtool.settings.section import Checked, Choice, Section, check, finite, in_registry

FRUITS: Registry[Any] = Registry("fruit")


@FRUITS.add
def apple(
    bowl: list[str],
    *,
    weight: Annotated[float, Field(gt=0, le=9)] = 1.5,
    count: int = 1,
    color: str = "red",
) -> tuple[Any, ...]:
    return (bowl, weight, count, color)


@FRUITS.add
def banana(bowl: list[str], *, length: float) -> tuple[Any, ...]:
    return (bowl, length)


@FRUITS.add
def cherry(bowl: list[str]) -> tuple[Any, ...]:
    return (bowl,)


class Inner(Section):
    """A section inside another."""

    size: int = Field(default=1, ge=1, lt=10)
    ratio: float = 0.5


class Outer(Section):
    """A section with every kind of key."""

    fruit: Annotated[Choice, in_registry(FRUITS)] = Choice(name="apple")
    inner: Inner = Inner()
    parts: list[Inner] = Field(default_factory=list)
    title: str = ""


def message(data: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        check(Outer, data, "test.yaml")
    return str(caught.value).splitlines()


def test_names_come_in_file_order() -> None:
    assert FRUITS.names() == ["apple", "banana", "cherry"]
    assert "apple" in FRUITS
    assert "pear" not in FRUITS


def test_build_fills_in_the_parameters_and_leaves_the_rest_to_the_caller() -> None:
    assert FRUITS.build("apple", count=3)(["mine"]) == (["mine"], 1.5, 3, "red")
    assert FRUITS["cherry"] is cherry


def test_only_keyword_only_arguments_are_parameters() -> None:
    assert list(FRUITS.parameters("apple")) == ["weight", "count", "color"]
    assert list(FRUITS.parameters("cherry")) == []


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("aple", {}, "unknown fruit 'aple'; did you mean apple?"),
        ("zzz", {}, "unknown fruit 'zzz'; choose one of: apple, banana, cherry"),
        ("apple", {"wieght": 1.0}, "wieght: apple has no parameter wieght; did you mean weight?"),
        (
            "apple",
            {"zzz": 1.0},
            "zzz: apple has no parameter zzz; choose one of: weight, count, color",
        ),
        ("cherry", {"size": 1}, "size: cherry has no parameter size; it takes none"),
        ("apple", {"bowl": []}, "bowl: apple has no parameter bowl; choose one of: "),
        ("banana", {}, "length: missing; banana needs it"),
        ("banana", {"length": "2"}, "length: '2' is not a number"),
        ("banana", {"length": True}, "length: true is not a number"),
        ("banana", {"length": math.inf}, "length: inf is not a finite number"),
        ("banana", {"length": math.nan}, "length: nan is not a finite number"),
        ("apple", {"count": 1.0}, "count: 1.0 is not a whole number"),
        ("apple", {"count": True}, "count: true is not a whole number"),
        ("apple", {"color": 3}, "color: 3 is not text"),
        ("apple", {"weight": 0.0}, "weight: 0.0 is not more than 0"),
        ("apple", {"weight": 9.5}, "weight: 9.5 is more than 9"),
    ],
)
def test_a_mistake_is_named(name: str, params: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        FRUITS.build(name, **params)
    assert str(caught.value).startswith(expected)


def test_every_mistake_of_a_choice_is_listed() -> None:
    found = FRUITS.problems("apple", {"weight": -1.0, "count": "x", "zzz": 1})
    assert [place for place, _ in found] == ["weight", "count", "zzz"]
    with pytest.raises(RecipeError, match=r"weight: .*; count: .*; zzz: "):
        FRUITS.build("apple", weight=-1.0, count="x", zzz=1)


def test_whole_numbers_are_numbers() -> None:
    assert FRUITS.build("banana", length=2)([]) == ([], 2)


def test_an_unknown_name_is_no_key_error() -> None:
    with pytest.raises(RecipeError, match="did you mean banana"):
        FRUITS["bananna"]


def test_a_near_miss_is_guessed_and_a_far_one_gets_the_list() -> None:
    assert did_you_mean("straight_trough", ["relu", "straight_through"]) == (
        "; did you mean straight_through?"
    )
    assert did_you_mean("qqq", ["relu", "ste"]) == "; choose one of: relu, ste"


def test_plain_data_becomes_a_section() -> None:
    data = {"fruit": {"name": "banana", "length": 2.0}, "inner": {"size": 3}, "parts": [{}]}
    outer = check(Outer, data, "test.yaml")
    assert outer.fruit.name == "banana"
    assert outer.fruit.params == {"length": 2.0}
    assert str(outer.fruit) == "banana(length=2.0)"
    assert (outer.inner.size, outer.parts) == (3, [Inner()])


def test_a_bare_name_is_a_choice_without_parameters() -> None:
    choice = check(Outer, {"fruit": "cherry"}, "test.yaml").fruit
    assert (choice.name, choice.params, str(choice)) == ("cherry", {}, "cherry")


def test_a_section_survives_being_dumped_and_read_again() -> None:
    outer = check(Outer, {"fruit": {"name": "apple", "count": 2}, "parts": [{"size": 4}]}, "a")
    assert check(Outer, outer.model_dump(), "b") == outer


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"titel": "x"}, "titel: unknown key; did you mean title?"),
        ({"inner": {"sizes": 2}}, "inner.sizes: unknown key; did you mean size?"),
        ({"parts": [{}, {"raito": 2.0}]}, "parts.1.raito: unknown key; did you mean ratio?"),
        ({"inner": {"size": 0}}, "inner.size: 0 is less than 1"),
        ({"inner": {"size": 10}}, "inner.size: 10 is not less than 10"),
        ({"inner": {"size": "3"}}, "inner.size: '3' is not a whole number; leave out the quotes"),
        ({"inner": {"size": 3.0}}, "inner.size: 3.0 is not a whole number"),
        ({"inner": {"ratio": math.nan}}, "inner.ratio: nan is not a finite number"),
        ({"inner": 3}, "inner: 3 is not a mapping of keys"),
        ({"parts": {}}, "parts: {} is not a list"),
        ({"title": 3}, "title: 3 is not text; put it in quotes, as it was written, for text"),
        ({"fruit": "aple"}, "fruit: unknown fruit 'aple'; did you mean apple?"),
        ({"fruit": 3}, "fruit: 3 is not a name or {name: ..., parameter: ...}"),
        (
            {"fruit": {"count": 2}},
            "fruit.name: missing; choose one of: apple, banana, cherry",
        ),
        (
            {"fruit": {"name": "apple", "count": "2"}},
            "fruit.count: '2' is not a whole number; leave out the quotes",
        ),
        ({"fruit": {"name": "banana"}}, "fruit.length: missing; banana needs it"),
    ],
)
def test_a_problem_is_shown_with_its_place(data: Any, line: str) -> None:
    assert message(data) == ["test.yaml: 1 problem", f"  {line}"]


def test_all_problems_are_shown_at_once() -> None:
    data = {
        "fruit": {"name": "apple", "wieght": 1.0, "count": None},
        "inner": {"size": 99, "ratio": "x"},
        "titel": "x",
    }
    lines = message(data)
    assert lines[0] == "test.yaml: 5 problems"
    places = {line.split(":")[0].strip() for line in lines[1:]}
    assert places == {"fruit.wieght", "fruit.count", "inner.size", "inner.ratio", "titel"}


def test_what_is_no_mapping_is_one_problem() -> None:
    assert message(["a"])[1:] == ["  ['a'] is not a mapping of keys"]


def test_a_section_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Inner().size = 3


def test_a_choice_may_be_checked_by_more_than_its_registry() -> None:
    def check_basket(name: str, params: Mapping[str, object]) -> Checked:
        found = [("basket", f"{name} has none")] if params.get("basket") else []
        return Checked(found, {key: value for key, value in params.items() if key != "basket"})

    class Shop(Section):
        fruit: Annotated[Choice, in_registry(FRUITS, also=check_basket)]

    with pytest.raises(RecipeError, match=r"1 problem\n  fruit\.basket: cherry has none"):
        check(Shop, {"fruit": {"name": "cherry", "basket": 1}}, "shop")


def test_a_check_leaves_what_it_checks_as_it_was() -> None:
    seen: list[Mapping[str, object]] = []

    def look(name: str, params: Mapping[str, object]) -> Checked:
        seen.append(params)
        return Checked([], {"count": 2})

    class Shop(Section):
        fruit: Annotated[Choice, in_registry(FRUITS, also=look)]

    data = {"fruit": {"name": "apple", "basket": 1}}
    assert check(Shop, data, "shop").fruit.params == {"basket": 1}
    assert (data, seen) == ({"fruit": {"name": "apple", "basket": 1}}, [{"basket": 1}])


@dataclass(frozen=True, kw_only=True)
class NutFacts:
    """What is true of a nut."""

    salted: bool = False
    shells: int = 1


def nuts() -> Any:
    table = Registry[Callable[..., int]]("nut").with_facts(NutFacts)

    @table.add
    def hazel(bowl: int, *, size: int = 3) -> int:
        return bowl + size

    @table.add(salted=True, shells=0)
    def peanut(bowl: int, *, size: int) -> int:
        return bowl - size

    return table


def test_a_member_says_in_its_decorator_what_is_true_of_it() -> None:
    table = nuts()
    assert table.names() == ["hazel", "peanut"]
    assert table.facts("hazel") == NutFacts()
    assert table.facts("peanut") == NutFacts(salted=True, shells=0)
    assert table.build("hazel", size=4)(1) == 5
    assert (table["peanut"](1, size=4), list(table.parameters("peanut"))) == (-3, ["size"])


def test_the_usual_is_true_of_a_member_that_is_not_listed_or_has_another_name() -> None:
    table = nuts()
    assert table.facts("cashew") == NutFacts()
    assert table.add(table["peanut"], "a.py:peanut") is table["peanut"]
    assert table.facts("a.py:peanut") == NutFacts()
    del table._members["peanut"]
    assert table.facts("peanut") == NutFacts()


def test_a_fact_that_the_table_does_not_know_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="sweet"):
        nuts().add(sweet=True)


def test_another_table_is_included_with_what_is_true_of_all_of_it() -> None:
    table = nuts()
    table.include(FRUITS, salted=True)
    assert table.names() == ["hazel", "peanut", "apple", "banana", "cherry"]
    assert table.facts("banana") == NutFacts(salted=True)
    assert table["cherry"] is cherry


def test_values_are_those_given_and_else_the_defaults() -> None:
    assert FRUITS.values("apple", {"count": 7}) == {"weight": 1.5, "count": 7, "color": "red"}
    assert FRUITS.values("banana", {}) == {}


def test_several_problems_read_as_one_sentence_too() -> None:
    assert str(ProblemsError([("a", "is bad"), ("b", "is worse")])) == "a: is bad; b: is worse"


def test_finite_means_a_number_that_is_neither_infinite_nor_a_truth_value() -> None:
    assert [finite(x) for x in (1, 0.5, math.inf, math.nan, True, "1", None)] == [
        *[True] * 2,
        *[False] * 5,
    ]


@pytest.mark.parametrize("turn", range(2))
def test_what_a_test_lists_is_gone_after_it(turn: int) -> None:
    assert "one.py:own" not in ESTIMATORS
    ESTIMATORS.add(ESTIMATORS["straight_through"], "one.py:own")
