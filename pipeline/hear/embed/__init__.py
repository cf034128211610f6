"""Embeddings of a task's clips, in the files that hear-eval-kit reads."""
