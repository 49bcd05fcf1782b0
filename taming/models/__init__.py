"""What is trained: the VQGAN family and the transformer over its codes (Lightning modules)."""
