"""What LVM and device-mapper know of a volume beyond its bytes."""
