"""The host's VIDEO, AUDIO and files as streams."""
