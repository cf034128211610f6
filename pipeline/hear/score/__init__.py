"""hear-eval-kit's protocol: the kit itself, or all of its classifiers trained at once."""
