"""Hostile safetensors files and archives."""
