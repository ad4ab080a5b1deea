"""NOAH: a supernet of modules, an evolutionary search under a parameter budget, and the chosen subnet trained anew.

Zhang, Zhou, Liu, "Neural Prompt Search", TPAMI 2024. `vision_peft noah` runs the three stages; `vision_peft.methods.noah` is what
they end with: a method that `adapt` takes like any other.
"""
