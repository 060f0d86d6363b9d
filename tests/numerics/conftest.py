"""Hypothesis without a deadline: on a busy machine the first example may be slow."""

from hypothesis import settings

settings.register_profile("qtool", deadline=None)
settings.load_profile("qtool")
