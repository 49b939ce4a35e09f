"""Who may call a port: bearer tokens, certificates, and the files that both come from."""
