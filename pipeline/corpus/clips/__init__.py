"""Clips between the stages: lists of segments, the ledger of every clip, shards and their cache."""
