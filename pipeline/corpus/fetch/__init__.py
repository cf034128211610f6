"""Fetching recordings: media, the queue with its store, failures and the limits of a site."""
