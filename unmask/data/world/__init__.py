"""A small real world with exact labels: scenes of emoji drawings, and all that can be said and asked about them."""
