"""hear-eval-kit's protocol: the kit itself, or the same with all classifiers trained at once.

    scores         scores of a task by either engine, as clean JSON (`score.engine`)
    protocol       which settings are tried, which splits train, validate and test
    data           a task's embeddings and labels, checked
    batches        the rows of each training step
    random_streams    what is drawn at random: initial weights, dropout
    ensemble       classifiers of one shape as one module with weights [G, out, in], and their Adam
    fitting        training until no validation improves
    metrics        hear-eval-kit's metrics; the frequent ones for all classifiers at once
    scoring        validation and test of logits
    events         sound events from the probabilities of frames
    event_scores   sed_eval's event-based scores, faster
    engine         all of it for one task

Letters of shapes: G classifiers, N rows (clips or frames), B rows of a batch, D dimensions of an
embedding, H hidden units, C classes.
"""
