"""A run as the straight-through run that it equals (Schoenbauer et al., 2024, arXiv:2405.05171).

weights: alpha and M of a weight. recipe: rewritten, and what theory says of it. state: weights and
momentum carried over. run: a whole run folder.
"""
