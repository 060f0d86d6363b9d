"""Is a gradient estimator a straight-through one in disguise (Schoenbauer et al., 2024)?

arms: custom, mapped, naive, jitter. agreement: how alike two runs are. slopes: how that falls with
the learning rate; verdict: what that says. report: all of it.
"""
