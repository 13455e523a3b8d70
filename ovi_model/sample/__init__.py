"""What happens at each step besides the network."""
