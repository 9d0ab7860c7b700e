"""The caller of a V2 server.  Knows no model and no picture."""
