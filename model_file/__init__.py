"""Reading of exported model files: structure, tensors, symbolic dimensions, attention layers. Runs nothing."""
