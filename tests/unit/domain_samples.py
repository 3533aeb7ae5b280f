"""XML of domains, as libvirt writes it."""

UUID = "0b4f6e1c-7a52-4d6e-9d0e-5a1f3c2b7e90"


def domain(*devices: str, name: str = "web01", around: str = "") -> bytes:
    """A domain with these devices."""
    return f"""<domain type='qemu'>
  <name>{name}</name>
  <uuid>{UUID}</uuid>
  <memory unit='KiB'>262144</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>
  <devices>
    {"".join(devices)}
    <controller type='pci' index='0' model='pci-root'/>
  </devices>
  {around}
</domain>
""".encode()


def disk(
    target: str = "vda",
    source: str = "file='/images/web01.raw'",
    *,
    kind: str = "file",
    driver: str = "<driver name='qemu' type='raw'/>",
    device: str = "disk",
    bus: str = "virtio",
    more: str = "",
    in_source: str = "",
) -> str:
    """One drive; ``source`` are the attributes of its source, none for an empty drive."""
    behind = f"<source {source}>{in_source}</source>" if source else ""
    return (
        f"<disk type='{kind}' device='{device}'>{driver}{behind}"
        f"<target dev='{target}' bus='{bus}'/>{more}</disk>"
    )


QCOW2 = "<driver name='qemu' type='qcow2' discard='unmap'/>"
CDROM = disk("sda", "", device="cdrom", bus="sata", more="<readonly/>")
FLOPPY = disk("fda", "", device="floppy", bus="fdc")
OVERLAY = disk(
    "vda",
    "file='/images/over.qcow2' index='2'",
    driver=QCOW2,
    more="""
    <backingStore type='file' index='3'>
      <format type='raw'/>
      <source file='/images/base.raw'><encryption format='luks'/></source>
      <target dev='vdz'/><shareable/>
      <backingStore/>
    </backingStore>
    <mirror type='file' job='copy'><source file='/images/copy.raw'/></mirror>
    <alias name='virtio-disk0'/>""",
)
NETWORK = disk(
    "vdb",
    "protocol='rbd' name='pool/web01'",
    kind="network",
    in_source="<host name='mon1' port='6789'/>",
)
VOLUME = disk("vdc", "pool='default' volume='web01.qcow2'", kind="volume", driver=QCOW2)
BLOCK = disk("vdb", "dev='/dev/vg0/web01-data'", kind="block")
NVME = disk("vdd", "type='pci' managed='yes' namespace='1'", kind="nvme")
WITH_OPTIONS_OF_QEMU = """
  <qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
    <qemu:arg value='-drive'/><qemu:arg value='file=/etc/shadow,format=raw'/>
  </qemu:commandline>
  <metadata><app:disk xmlns:app='urn:app'><disk type='file'><target dev='vdq'/></disk></app:disk>
  </metadata>"""
