"""Results: what they hold, and their faces; opens without torch.

results: one type for each result file; layers, exports, comparisons, inspections, predictions,
listings, new_recipes, checks, benchmarks, sensitivity, health, improvements, fairness,
explanations: more of them; result: what all share. tables, export_table, site_tables: for people;
spreadsheets: as CSV; words, fair_words: figures as they are written; saturation: what is said of
layers that may saturate. figures: small pictures as SVG.

layer_figures: what a run's layers are like. pages: one HTML file of it all, and figures for papers.
"""
