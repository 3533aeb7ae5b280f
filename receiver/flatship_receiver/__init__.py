"""The receiver: writes disks at the datastore, proves them, publishes them."""
