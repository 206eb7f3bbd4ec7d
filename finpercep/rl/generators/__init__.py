"""Generators: the protocol, the embedded one, pipelines of diffusers, and one's own."""

from finpercep.rl.generators.base import GeneratorModule
from finpercep.rl.generators.config import GeneratorConfig
from finpercep.rl.generators.load import load_generator
from finpercep.rl.generators.protocol import Generator
from finpercep.rl.generators.tiny import SRTiny

__all__ = ["Generator", "GeneratorConfig", "GeneratorModule", "SRTiny", "load_generator"]
