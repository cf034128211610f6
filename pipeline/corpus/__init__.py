"""The pre-training data: sources, fetch, clips (ledger and shards), then resample and logmel."""
