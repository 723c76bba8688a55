"""Telemetry: what Tamiyo tells operators about each step."""
