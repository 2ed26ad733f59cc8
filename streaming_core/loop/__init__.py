"""The chunk loop: plan, cues, chunk samplers, state."""
