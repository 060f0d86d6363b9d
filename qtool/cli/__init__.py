"""The command line: parse arguments, call a story, show the result. Imports no torch.

app: all commands. start: those to begin with, such as `qtool list`. train, convert, export: those
that lead from a recipe to a file. use: those that use a model. sensitivity: what widths cost.
inspect: the one that looks at what there is. compare: those of `qtool compare`. options: what
commands share; running: those that train; words: those of two words. completion: what a shell
offers. lists: how lists are read. first: what can be told before torch is loaded.
"""

from qtool.cli.app import app, main

__all__ = ["app", "main"]
