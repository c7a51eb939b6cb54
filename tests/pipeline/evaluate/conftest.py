from tests.pipeline.evaluate.videos import without_ray

__all__ = ["without_ray"]
