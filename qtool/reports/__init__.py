"""Results: what they hold, and their faces; opens without torch.

results: one type for each result file. tables: for people. figures: small pictures as SVG.
"""
