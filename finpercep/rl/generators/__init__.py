"""Generators: the protocol, and the embedded one."""

from finpercep.rl.generators.protocol import Generator
from finpercep.rl.generators.tiny import SRTiny

__all__ = ["Generator", "SRTiny"]
