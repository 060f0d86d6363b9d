"""A run: begun, bound to its folder, written, resumed, loaded again.

folder: its files. begin: a free folder, or this very run. train: from the start, or from where it
stopped. run: what the files hold, each part built once. sources: what conversion and export start
from. export: files that are made of it. build: what a recipe names. equipment: what trains it;
looks: who looks on. machine: what it runs on. access: what a recipe may reach. deal: which rows go
to which process. scalars: other tools that are told of figures. stepping: the step that it trains
by. teacher: whom it follows. checkpoint: everything needed to go on, and the one before. best: the
network that the hold-out chose. sound: which of them is as it was written, and what is made of it.
changes: what its weights' codes did. weights: them, for other tools. answers: what its network says
of each validation image. listed: the runs in a folder. place: which folder, and what lay there
moved aside. given: what commands are given, refused without torch. untrained: a network that is
only calibrated; calibration_folder: by images of a folder. timing: how long a training takes, by a
few steps.
"""
