"""What a recipe may say; checked in full before anything is built.

recipe: the whole, and what one section asks of another. model, data, training, teacher: the
sections (that of quantization is in `qtool.settings`). named_section: what names one of a family.
plain: a file read as YAML and changed by `--set`, without torch. extends: what one says of another.
early: wrong words of one, told without torch. file: checked in full, written. parts: of the user's
own code. places: what stands where.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qtool.recipe.file import load_recipe
    from qtool.recipe.recipe import Recipe

__all__ = ["Recipe", "load_recipe"]

_HOME = {"Recipe": "qtool.recipe.recipe", "load_recipe": "qtool.recipe.file"}


def __getattr__(name: str) -> object:
    """Load torch only when a recipe is checked in full, so that wrong files are told at once."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'qtool.recipe' has no attribute {name!r}")
