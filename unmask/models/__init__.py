"""Sequence -> Prediction: the networks. They import torch and the data types, nothing else."""
