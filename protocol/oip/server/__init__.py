"""The service that speaks the protocol over any `DataPlane`.

Knows no torch, no picture and no model file.  Both processes, transformer and predictor, are
this service with a data plane of their own.
"""
