"""The command line that joins the two services.  The only package that may import both."""
