"""Federated and data-parallel PyTorch training that sends sparse updates and reports the bytes it sent."""
