"""Many runs, one honest verdict.

question: what is asked. estimators, schedules, equivalence_arms: the arms. trials: what is trained.
execution: how, checked by room (of the disk) before it starts. executors: one by one; processes:
several at once, in slots, each with a worker. board: how far they are; unfinished: what is written
meanwhile. kept_files: damage and checkpoints. equivalence, agreement: how alike runs are.
statistics: what may be said. finished: runs and files as they stand.
"""
