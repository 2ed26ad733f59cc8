"""Measures of videos on the host: RAFT, CLIP scores, the report on disk."""
