"""The results of a run: scores, the paper's tables, curves, and the page that shows them."""
