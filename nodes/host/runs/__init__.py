"""Videos in run folders: the loop on disk, reroll, inspection, preflight."""
