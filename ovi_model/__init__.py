"""What Ovi is and does, apart from the nodes that show it."""
