"""HEAR's scoring protocol: hear-eval-kit itself, or the same with all classifiers trained at once.

    scores           scores of a task by either engine (`score.engine`), as clean JSON
    heareval_seed    hear-eval-kit with another seed
    protocol         hyperparameters to try; folds that train, validate and test
    data             a task's embeddings and labels, checked
    batches          rows of each training step
    random_streams   initial weights and dropout masks
    ensemble         classifiers of one shape as one module, and their Adam
    fitting          training until validation stops improving
    metrics          hear-eval-kit's metrics; the common ones for all classifiers at once
    scoring          validation and test of logits
    events           sound events from the probabilities of frames
    event_scores     sed_eval's event-based scores, faster
    engine           all of it for one task

Letters of shapes: G classifiers, N rows (clips or frames), B rows of a batch, D dimensions of an
embedding, H hidden units, C classes.
"""
