"""The arms of a comparison, and an equal chance for all of them.

compared: what an arm is. estimators, schedules, given: which there are; assigned: arms and grids as
they are written. fair: an equal chance, by matching (their rates) and tuning (hyperparameters;
scaling of numbers).
"""
