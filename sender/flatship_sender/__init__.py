"""The sender: reads disks on the KVM host and ships them."""
