"""Fetching clips of recordings: media, cuts, threads, store, failures, rate limits."""
