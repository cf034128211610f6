"""Detection of pre-training clips that are in the test split of a HEAR task."""
