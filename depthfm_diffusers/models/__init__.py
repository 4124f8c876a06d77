"""Networks beside diffusers' own."""
