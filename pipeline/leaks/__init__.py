"""Clips of the pre-training data that are in the test split of a HEAR task."""
