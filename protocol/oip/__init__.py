"""Open Inference Protocol (V2): the language that the transformer and the predictor share.

Everything directly in this package is values and codecs: no sockets, no torch, no kserve.
`oip.server` speaks the protocol over any data plane, `oip.client` calls one.
"""
