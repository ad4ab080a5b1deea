"""`app`: a page in the browser, on this machine alone, to use finished runs and to train new ones."""
