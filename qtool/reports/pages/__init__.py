"""Typed results in, one HTML file out, or a figure for a paper.

page: what all pages share, filled into templates/. run, comparison, equivalence, sensitivity: one
for each; evidence: what trials tell; curves, confusion, explained, repeat, tables: parts of them.
drawing: matplotlib, for a page or a file; figures, dots, lines, costs, papers: what it draws.
"""
