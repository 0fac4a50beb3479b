"""The only code that touches the machine: processes, files, namespaces, disks, terminals, facts."""
