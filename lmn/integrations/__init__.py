"""Callbacks for the training loops of other libraries: ``lmn.integrations.lightning`` and ``lmn.integrations.transformers``."""
