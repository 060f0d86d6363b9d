"""What a recipe may say; checked in full before anything is built.

recipe: the whole, and what one section asks of another. model, data, training: the sections (that
of quantization is in `qtool.settings`). named_section: what names one of a family. file: read as
YAML, changed by `--set`, written. places: what stands where.
"""

from qtool.recipe.file import load_recipe
from qtool.recipe.recipe import Recipe

__all__ = ["Recipe", "load_recipe"]
