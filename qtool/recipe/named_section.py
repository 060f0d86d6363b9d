"""A section of the recipe that names one of a family: its fields and the name's parameters."""

from abc import abstractmethod
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Self

from pydantic import ConfigDict, ModelWrapValidatorHandler, model_validator

from qtool.problems import Problem, ProblemsError, did_you_mean
from qtool.settings.section import Named, Section, attempt


class NamedSection(Named, Section):
    """A section that names one of a family."""

    model_config = ConfigDict(extra="allow")

    @classmethod
    @abstractmethod
    def named_problems(cls, name: str, params: Mapping[str, object]) -> list[Problem]:
        """Return what is wrong with the name and its parameters."""

    @model_validator(mode="wrap")
    @classmethod
    def _known(cls, data: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Check fields, name and parameters, and report what is wrong with any of them at once."""
        made, given, found = attempt(cls, data, handler)
        if isinstance(given, dict) and isinstance(name := given.get("name"), str):
            places = [place for place, _ in found]
            params = {str(k): v for k, v in given.items() if str(k) not in ("name", *places)}
            for place, why in cls.named_problems(name, params):
                if "has no parameter" in why and _is_rather(place, cls.model_fields, why):
                    why = f"unknown key{did_you_mean(place, cls.model_fields)}"
                if why.startswith("missing;") and place in cls.model_fields:
                    why = f"{name} needs it, and it is a key of qtool's; give it another name"
                found.append((place or "name", why))
        if found or made is None:
            raise ProblemsError(found)
        return made


def _is_rather(key: str, fields: Collection[str], why: str) -> bool:
    """Tell whether an unknown key is nearer to a field than to the parameter that is proposed."""
    proposed = why.partition("did you mean ")[2].rstrip("?")
    nearest = get_close_matches(key, [*fields, proposed], n=1)
    return bool(nearest) and nearest[0] != proposed
