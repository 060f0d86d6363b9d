"""What a recipe names, built: data, network, and what trains it.

build: data and network. equipment: loss, optimizer, step, and who looks on; stepping: a step that
is compiled, captured, or beside a known population. teacher: whom the network follows. deal: which
rows go to which process. timing: how long a training takes, by a few steps.
"""
