"""A web page on this machine where one watches a trained model write (docs/demo.md)."""
