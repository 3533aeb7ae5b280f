"""Where disks are read from: one interface, several implementations."""
