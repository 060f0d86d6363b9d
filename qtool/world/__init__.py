"""Processes that train one network together: who they are, and what they tell each other.

launched: what torchrun says of this process. world: one process, and what all ask of it. group:
several, by torch.distributed. forming: how they find each other, and part. passes: which
processes, and which share of a batch, a pass through a model is of.
"""
