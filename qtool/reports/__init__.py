"""Results: what they hold, and their faces; opens without torch.

results: one type for each result file; layers, comparisons, inspections, health: more of them;
result: what all share. tables: for people. figures: small pictures as SVG.
"""
