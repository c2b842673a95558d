"""From what was read to a posterior: heads for latent SDEs."""
