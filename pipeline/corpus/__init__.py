"""The pre-training data, from a source to log-mel shards, with a ledger of every clip."""
