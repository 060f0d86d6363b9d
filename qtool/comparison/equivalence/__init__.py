"""Is a gradient estimator a straight-through one in disguise (Schoenbauer et al., 2024)?

asked: the arms, rates and seeds. arms: their recipes, trained. agreement: how alike two runs are;
likeness: all figures of that. slopes: how it falls with the learning rate; verdict: what that says;
forecast: how sure of it one could be. report: all of it.
"""
