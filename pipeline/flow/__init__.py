"""The stages of a sample, and the Ray pipeline that they form. No other part of `pipeline` imports Ray."""
