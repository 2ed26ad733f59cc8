"""One module per family of recorded results; importing it registers its replays."""
