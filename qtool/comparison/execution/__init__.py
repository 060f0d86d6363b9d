"""Trials, trained: how many at once, where, and what becomes of those that fail.

trials: what is trained. plan: how, checked by room (of the disk) before it starts. executors: one
after the other; processes: several at once, in slots, each with a worker; cluster: by Ray; tasks:
what they are sent. board: how far they are; unfinished: what is written meanwhile. kept_files:
damage and checkpoints.
"""
