"""A map against its reference: counts, figures, areas with intervals."""
