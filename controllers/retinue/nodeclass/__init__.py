"""NodeClass: which nodes belong to it, what they offer, and its status."""
