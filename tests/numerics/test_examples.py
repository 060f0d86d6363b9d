"""The examples in the docstrings of numerics give what they say."""

import doctest
import importlib
import pkgutil

import pytest

import qtool.numerics

NAMES = [module.name for module in pkgutil.iter_modules(qtool.numerics.__path__)]
WITHOUT = {  # whose functions stand behind those of others, or are choices that a table documents
    *("closed_forms", "fast_estimators", "half_normal", "interval", "range_facts"),
    *("ranges", "relu_family", "scale_search", "sign_family", "soft_staircase", "steps"),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_a_module_give_what_they_say(name: str) -> None:
    module = importlib.import_module(f"qtool.numerics.{name}")
    found = doctest.testmod(module, optionflags=doctest.REPORT_NDIFF)
    assert found.failed == 0
    assert (found.attempted == 0) == (name in WITHOUT)
