"""From depth to new images, with Stable Diffusion and ControlNet."""
