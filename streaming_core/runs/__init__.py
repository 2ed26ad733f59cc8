"""Run folders: what a long run leaves on disk, and how it resumes."""
