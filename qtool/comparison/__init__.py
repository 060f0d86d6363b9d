"""Many runs, one honest verdict.

stories: from a recipe to a verdict. question: what is asked. arms: which there are, and an equal
chance for all of them. execution: how their trials are trained. forecast: what that takes, and
could find. judged: what trials show, look by look; statistics: what may be said of accuracies.
explained: what may explain a difference. equivalence: whether two arms are one. finished: runs and
files as they stand. report: what is shown of it all: a page, a figure, a spreadsheet.
"""
