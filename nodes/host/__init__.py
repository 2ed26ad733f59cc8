"""The only room that imports the host (`comfy.*`, `folder_paths`, ...); everything else goes through it."""
