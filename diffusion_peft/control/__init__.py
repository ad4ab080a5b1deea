"""Conditions beside the prompt: edges, masks, depth, boxes, pictures."""

from diffusion_peft.control.branch import Control, controls_of, set_condition

__all__ = ["Control", "controls_of", "set_condition"]
