"""The parts of `DepthFMDepthCompletionPipeline`."""
