"""What boxes were at one instant: taking them (criu, runsc), keeping them on the disk, making boxes of them again."""
