"""What all OCI runtimes share: the bundle (pure), the calls, the ground, the driver."""
