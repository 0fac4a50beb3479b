# The job of the second guest: what it sees before and after the host has looked at its VMM.
probe
# Bit 2 of what the balloon and its driver agreed on: it gives memory back (virtio 1.2, 5.5.3).
for place in /sys/bus/virtio/devices/*; do
    [ "$(cat "$place/device")" = 0x0005 ] && echo "gives $(cut -c3 "$place/features")"
done
grep -a -o 'microvm:conformance' /sys/firmware/dmi/tables/DMI 2>/dev/null | sed 's/^/oem /'
echo "flags $(sed -n '/^flags/{s/^[^:]*: //p;q}' /proc/cpuinfo)"
echo "threads $(cat /sys/devices/system/cpu/cpu0/topology/thread_siblings_list)"
# Milliseconds that 4 MiB of the volume take, and of another disk.
took() {
    begin=$(date +%s%3N)
    dd if="$1" of=/dev/null bs=1M count=4 iflag=direct 2>/dev/null
    echo $(($(date +%s%3N) - begin))
}
for place in /sys/block/vd*; do
    [ "$(cat "$place/size")" = 131072 ] && echo "took $(took "/dev/${place##*/}") $(took /dev/vda)"
done
echo "inflated $(sed -n 's/^balloon_inflate //p' /proc/vmstat)"
total() { set -- $(grep MemTotal /proc/meminfo); echo "$2"; }
before=$(total)
# The images that are not raw have this size.
for place in /sys/block/vd*; do
    disk=${place##*/}
    [ "$(cat "$place/size")" = 40960 ] || continue
    echo marked | dd of=/dev/$disk bs=512 seek=8 conv=notrunc,fsync 2>/dev/null
    echo "packed $(dd if=/dev/$disk bs=512 skip=8 count=1 iflag=direct 2>/dev/null | head -n1)"
done
perl -MSocket -e '
    socket(my $s, PF_INET, SOCK_STREAM, 0); setsockopt($s, SOL_SOCKET, SO_REUSEADDR, 1);
    bind($s, sockaddr_in(8099, INADDR_ANY)) or die; listen($s, 5);
    while (accept(my $c, $s)) { syswrite $c, "over here"; close $c }
' &
listener=$!
outward=$(perl -MSocket -e '
    socket(my $s, PF_INET, SOCK_STREAM, 0); connect($s, sockaddr_in(8097, inet_aton("127.0.0.1"))) or exit;
    print while <$s>
')
[ -n "$outward" ] && echo "outward $outward"
sleep 1
echo ready >&2
cat >/dev/null
tries=0
while [ "$(total)" -le "$before" ] && [ $tries -lt 60 ] && [ -d /sys/bus/virtio/drivers/virtio_mem ]; do
    tries=$((tries + 1))
    sleep 1
done
echo "memory $before $(total)"
kill $listener
exit 3
