# The job of a guest with every device: what it sees, one finding a line.
probe
echo "input $(cat | tr '\n' ' ')"
echo kept >/srv/data/kept && sync && echo "data $(cat /srv/data/kept)"
echo no 2>/dev/null >/srv/fixed/new && echo "fixed written" || echo "fixed refused"
for place in /srv/files /srv/locked /srv/nine; do
    [ -d "$place" ] || continue
    echo "${place##*/} read $(cat "$place/hello")"
    echo back 2>/dev/null >"$place/from-${place##*/}" && word=written || word=refused
    echo "${place##*/} $word"
done
available() { set -- $(grep MemAvailable /proc/meminfo); echo "$2"; }
before=$(available) tries=0
echo ready >&2
while now=$(available) && [ $((before - now)) -lt 65536 ] && [ $tries -lt 120 ]; do
    tries=$((tries + 1))
    sleep 1
done
echo "balloon $before $now"
exit 7
