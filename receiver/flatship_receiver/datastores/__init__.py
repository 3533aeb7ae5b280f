"""Where disks are written to: one interface, several implementations."""
