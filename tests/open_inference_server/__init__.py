"""A real Open Inference Protocol server (MLServer) for the tests, in an environment of its own."""
