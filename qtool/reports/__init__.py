"""Results: what they hold, and their faces; opens without torch.

results: one type for each result file; layers, exports, comparisons, inspections, predictions,
benchmarks, health, fairness, explanations: more of them; result: what all share. tables,
export_table, site_tables: for people; spreadsheets: as CSV; words, fair_words: figures as they are
written; saturation: what is said of layers that may saturate. figures: small pictures as SVG.

page: typed results in, one HTML file out, by templates/. page_run, page_comparison,
page_equivalence: one for each; page_evidence: what trials tell, page_curves, page_confusion,
page_explained, page_repeat, page_tables: parts of them; layer_figures: what a run's layers are
like. page_drawing: matplotlib, for a page or a file; page_figures, page_dots, page_lines,
page_costs, page_papers: what it draws.
"""
