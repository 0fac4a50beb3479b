# What each job of the suite begins with: every interface has its address.
# A job starts after ten seconds without an address; a busy bed needs longer.
nics() { grep -l 0x0001 /sys/bus/virtio/devices/*/device | wc -l; }
addressed() { ip -4 -o address show scope global | wc -l; }
tries=0
while [ "$(addressed)" -lt "$(nics)" ] && [ $tries -lt 90 ]; do
    tries=$((tries + 1))
    sleep 1
done
