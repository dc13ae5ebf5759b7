"""Pictures of models, simulations and measurements, drawn with matplotlib."""
