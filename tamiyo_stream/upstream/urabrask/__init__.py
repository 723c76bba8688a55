"""Urabrask, the reference crucible: trains a blueprint for a moment and writes down what went wrong (design §13).

::

    sheet = evaluate_kernel(catalogue()["BP003"], width=64)
    host_sheet = evaluate_host("my-run-host", model, lambda candidate: loss_on_one_batch(candidate))
    publish_sheets(publisher, [sheet, host_sheet])

Probed is always a copy, with inputs and random state of its own: a host model is left bit for bit as it was.
"""
