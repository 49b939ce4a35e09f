"""Where an instance goes: free capacity per node and the choice of one domain."""
