"""From requests that wait to batches that execute.

    policy      what a model's configuration asks for: values
    decide      which of the waiting requests are executed together, and when: one pure function
    scheduler   the queue before one model version, which does what was decided
    batch       many requests' tensors into one batch's, and its answer back into theirs

Knows no protocol, no file and no torch.
"""
