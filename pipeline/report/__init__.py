"""What a run has given: scores, tables of the paper, curves, and the page that shows them."""
