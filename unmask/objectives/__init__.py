"""(model, batch) -> Loss."""
