"""The patch discriminator."""
