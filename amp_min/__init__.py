"""A minimal AMP: automated multi-level preference data and multi-level DPO for multimodal language models."""

__version__ = "0.1.0"
