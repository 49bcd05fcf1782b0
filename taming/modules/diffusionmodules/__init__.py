"""Encoder and decoder of the first stage."""
