"""The tiles that the autoencoder works on after `pipe.vae.enable_tiling()`."""

from __future__ import annotations

from diffusers import AutoencoderKL, AutoencoderTiny

# Tiles of diffusers overlap by 1/4 or 1/8: a multiple of 8 latent pixels has a whole number of them in an overlap.
_LATENT_MULTIPLE = 8


def enlarge_tiles(vae: AutoencoderKL | AutoencoderTiny, size: int) -> None:
    """Makes an autoencoder's tiles at least as large as the images that a model was trained on.

    diffusers takes an `AutoencoderKL`'s `sample_size` for the side of a tile, which is 32 pixels where nobody set it.
    Every normalisation then sees 32 pixels in place of an image, and the result is another. Neither weights nor
    configuration are changed, and nothing that is computed without tiling.

    Args:
        vae: Changed in place.
        size: Side in pixels; rounded up, so that the overlaps of tiles are whole numbers of latent pixels.
    """
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    latent = -(-size // (factor * _LATENT_MULTIPLE)) * _LATENT_MULTIPLE
    if latent * factor > vae.tile_sample_min_size:
        vae.tile_sample_min_size, vae.tile_latent_min_size = latent * factor, latent
