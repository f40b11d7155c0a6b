"""``difiisr bench``: how fast network, upscaler and node are, beside other models, in one run."""
