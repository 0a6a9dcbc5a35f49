"""The build pipeline: source -> variants -> layers -> published image. Implements `weightyard build`."""
