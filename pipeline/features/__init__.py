"""The front end (paper section 3.1): log-mel spectrograms, their statistics and shards."""
