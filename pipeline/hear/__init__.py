"""The evaluation on HEAR: tasks, embeddings, models to compare, and their scores."""
