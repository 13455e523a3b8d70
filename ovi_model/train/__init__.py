"""Training: clips with captions to a LoRA of both towers."""
