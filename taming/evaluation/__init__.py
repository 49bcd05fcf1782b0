"""Numbers from models and images: reconstruction, codebook usage, likelihood, classification."""
