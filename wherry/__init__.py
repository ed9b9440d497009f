"""The contract: what both ends of every wire must agree on. Pure, except `wherry.mqtt`."""

__version__ = "0.1.0"
