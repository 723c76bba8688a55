"""Urza, the reference catalogue: kernels that seeds graft into a host model (design §13, ``domain.md`` §4.10).

::

    kernel = catalogue()["BP003"]
    module = kernel.build(width=64, parameters={"rank": 16})  # [..., 64] -> [..., 64]
    publish_catalogue(publisher, width=64)

Kernels of the safe tier are meant to be added to a host's features. The experimental ones need an operator's
approval. The hazardous ones exist to be found out by Urabrask: they are refused everywhere but in quarantine.
"""
