"""Are the numbers of a loaded pack right: its self-test run on a device, layer by layer where one diverges."""
