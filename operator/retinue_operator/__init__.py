"""The imperative shell of Retinue: watches the cluster, calls the core, applies what it plans."""
