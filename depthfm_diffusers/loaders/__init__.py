"""How diffusers finds this package's classes, and LoRA."""
