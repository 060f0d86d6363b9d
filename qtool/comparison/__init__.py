"""Many runs, one honest verdict.

question: what is asked. arms: what an arm is; estimators, schedules, given_arms, equivalence_arms:
which there are; assigned: arms and grids as they are written. fair: an equal chance for all, by
matching (their rates) and tuning (their hyperparameters; scaling of numbers). trials: what is
trained. execution: how, checked by room (of the disk) before it starts; forecast: what it takes,
and could find. executors: one by one; processes: several at once, in slots, each with a worker;
cluster: by Ray; tasks: what they are sent. board: how far they are; unfinished: what is written
meanwhile. kept_files: damage and checkpoints. judged: what trials show, look by look. equivalence,
agreement: how alike runs are; slopes, equivalence_verdict: what that says. statistics: what may be
said of accuracies. explained: what may explain a difference. finished: runs and files as they
stand. report: what is shown of it: a page, a figure, a spreadsheet.
"""
