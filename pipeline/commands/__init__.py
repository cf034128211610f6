"""Commands for people, which no stage needs: the download's queue, a live page, a check-up."""
