"""libvirt's domains: which disks a virtual machine has."""
