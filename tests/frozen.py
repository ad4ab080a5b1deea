"""Imported behind what a test process needs: what is there then stays, and no collection looks at it again."""

import gc

gc.collect()
gc.freeze()
