"""What a run keeps in its folder, written whole and read again.

folder: names, lock and state of its files. place: which folder, and what lay there moved aside.
begin: a free folder, or this very run; what is written beside its numbers. checkpoint: everything
needed to go on, and the one before. best: the network that the hold-out chose. weights: trained
ones, for other tools. sound: which of them is as it was written, and what is made of it. answers:
what the network says of each validation image. changes: what its weights' codes did. scalars: other
tools that are told of figures. listed: the runs in a folder.
"""
