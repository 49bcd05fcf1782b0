"""Networks, quantizers and losses: torch only, no Lightning."""
