"""The command's own signature; the canonical form is the wire's (:mod:`schemas.command_verifier`)."""

from __future__ import annotations

from schemas.command_verifier import KEY_ID, SIGNATURE, sign_command, verify_command

__all__ = ["KEY_ID", "SIGNATURE", "sign_command", "verify_command"]
