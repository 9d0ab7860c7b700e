"""The predictor: TorchScript models of a Triton model repository, behind the V2 protocol.

Read in the way of a request: `data_plane` -> `checks` -> `scheduler` -> `instances` -> `backends`.
Read in the way of a load: `repository` -> `model_config` -> `version_policy` -> `lifecycle` -> `backends`.
Speaks the protocol through `oip`; knows no transformer.
"""
