"""Quality of exported models on data with known answers: accuracy, intersection over union, average precision."""
