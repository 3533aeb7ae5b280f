"""Guards of what is taken from libvirt, and of what is given on from it."""

from guard import SENDER, Guard

XML = "tests/unit/test_domain_xml.py"
VIRSH = "tests/unit/test_virsh.py"
DOMAINS = "tests/unit/test_domain_disks.py"
MODEL = "tests/unit/test_queue_model.py"

GUARDS = (
    Guard(
        "a domain's XML has no document type, and so no entities",
        f"{SENDER}/domains/xml.py",
        "    parser.StartDoctypeDeclHandler = reading.doctype\n",
        "",
        (XML,),
    ),
    Guard(
        "a domain's XML is bounded before it is parsed",
        f"{SENDER}/domains/xml.py",
        "    if len(xml) > MAX_BYTES:\n",
        "    if False:\n",
        (XML,),
    ),
    Guard(
        "names in a domain's XML are bounded",
        f"{SENDER}/domains/xml.py",
        "    if any(len(each) > MAX_TEXT for each in texts.values()):\n",
        "    if False:\n",
        (XML,),
    ),
    Guard(
        "nothing that libvirt started for us outlives a question",
        f"{SENDER}/domains/virsh.py",
        "os.killpg(process.pid, signal.SIGKILL)",
        "process.kill()",
        (VIRSH,),
    ),
    Guard(
        "libvirt is asked to read only",
        f"{SENDER}/domains/virsh.py",
        '"--quiet", "--readonly", *at]',
        '"--quiet", *at]',
        (VIRSH,),
    ),
    Guard(
        "a domain that is not shut off is not sent",
        f"{SENDER}/domains/resolve.py",
        "    if state != SHUT_OFF:\n",
        "    if False:\n",
        (DOMAINS,),
    ),
    Guard(
        "a domain whose memory is saved is not sent",
        f"{SENDER}/domains/resolve.py",
        "    if name in libvirt.saved():\n",
        "    if False:\n",
        (DOMAINS,),
    ),
    Guard(
        "disks of another host's libvirt are not looked for here",
        f"{SENDER}/domains/resolve.py",
        "    if host not in _HERE:\n",
        "    if False:\n",
        (DOMAINS,),
    ),
    Guard(
        "a domain's raw disk is read as raw, whatever it begins with",
        f"{SENDER}/domains/resolve.py",
        "    return Source(path, _BY_DRIVER[disk.format])\n",
        "    return Source(path)\n",
        (DOMAINS,),
    ),
    Guard(
        "a job has as many formats as sources",
        f"{SENDER}/queue/model.py",
        "        if len(self._formats()) != len(self.sources):\n",
        "        if False:\n",
        (MODEL,),
    ),
)
