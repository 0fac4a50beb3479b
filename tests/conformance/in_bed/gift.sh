# The job of a guest that got devices of the host: what it sees of them, one finding a line.
echo "disk $(cat /sys/class/nvme/nvme0/serial)"
echo "read $(dd if=/dev/nvme0n1 bs=1M count=4 iflag=direct 2>/dev/null | wc -c)"
tries=0  # a hub looks at its ports in its own time
while [ $tries -lt 20 ] && ! ls /sys/bus/usb/devices/[0-9]*-[0-9]*/serial >/dev/null 2>&1; do
    ls /sys/bus/usb/devices/usb1 >/dev/null 2>&1 || break
    tries=$((tries + 1))
    sleep 1
done
for serial in /sys/bus/usb/devices/[0-9]*-[0-9]*/serial; do
    [ -e "$serial" ] && echo "usb $(cat "$serial")"
done
for device in /sys/bus/pci/devices/*; do echo "pci $(cat "$device/vendor"):$(cat "$device/device")"; done
echo "cpu $(sed -n '/^model name/{s/^[^:]*: //p;q}' /proc/cpuinfo)"
