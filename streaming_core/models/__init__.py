"""Networks of the StreamingT2V family, one folder per architecture."""
