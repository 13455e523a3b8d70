"""Files to MODEL, CLIP and VAE; each says what it read and what is wrong with it."""
