"""A run: begun, bound to its folder, written, resumed, loaded again.

train: from the start, or from where it stopped; epochs: each of them written down. run: what its
files hold, each part built once. converted: what conversion and export start from, and what is made
of it. built: what a recipe names, and what trains it. access: what a recipe may reach. kept: what
lies in a run's folder. machine: what it runs on. given: what commands are given, refused without
torch.
"""
