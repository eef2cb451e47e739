"""Delivery channels and the dispatcher."""
