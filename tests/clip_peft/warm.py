"""What children of a forkserver start with: everything imported, and the command's options read once."""

import clip_peft.training.job  # noqa: F401
from clip_peft.fit import fit

fit.resolve([("", {"data": "digits"})])
