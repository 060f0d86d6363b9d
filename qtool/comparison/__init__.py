"""Many runs, one honest verdict.

question: what is asked. estimators, schedules, equivalence_arms: the arms. trials: run them.
equivalence, agreement: how alike runs are. statistics: what may be said. finished: runs and files
as they stand.
"""
